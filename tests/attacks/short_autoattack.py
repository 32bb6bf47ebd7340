"""AutoAttack's package with few steps, for the tests of what this project adds to it."""

import pyautoattack


class FewQueries(pyautoattack.AutoAttack):
    """AutoAttack with a short Square attack."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.square.n_queries = 10


class FewSteps(FewQueries):
    """AutoAttack with a short form of each attack."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = part.n_iter_orig = 10
            part.n_restarts = 1
        self.apgd.eot_iter = 1


def shorten_autoattack(monkeypatch, version=FewSteps):
    monkeypatch.setattr(pyautoattack, "AutoAttack", version)
