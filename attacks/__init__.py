"""Attacks: one file each; variants of one attack share a file. `bench list attacks` shows them.

Modules that attacks and defenses share: ascent (projected gradient steps), step_sizes, losses, sequential_attack
(restarts and several losses), minimum_norm (nearest adversarial examples), apgd_state and apgd_l1 (Auto-PGD),
inner_attacks (attacks of adversarial trainings), fosc (a measure of convergence). libraries: those of other libraries.
"""
