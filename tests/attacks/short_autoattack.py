"""AutoAttack's package with few steps, for the tests of what this project adds to it."""

import pyautoattack


class ShortAutoAttack(pyautoattack.AutoAttack):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        for part in (self.apgd, self.apgd_targeted, self.fab):
            part.n_iter = part.n_iter_orig = 10
            part.n_restarts = 1
        self.apgd.eot_iter, self.square.n_queries = 1, 10


def shorten_autoattack(monkeypatch):
    monkeypatch.setattr(pyautoattack, "AutoAttack", ShortAutoAttack)
