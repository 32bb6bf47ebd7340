"""Contract tests: classes that the tests of a plugin inherit, for the entries that it registers.

    import pytest
    from bench.testing import DefenseContract

    @pytest.mark.parametrize("name", ["my-defense"])
    class TestMine(DefenseContract): ...

Each test takes the name (or spec) of one entry. They run on the CPU, on tiny networks.
"""

from bench.testing.certifier_contract import CertifierContract
from bench.testing.contracts import AttackContract, DatasetContract, DefenseContract, ModelContract

__all__ = ["AttackContract", "CertifierContract", "DatasetContract", "DefenseContract", "ModelContract"]
