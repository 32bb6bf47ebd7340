import re

from bench.studies.overhead import overhead


def test_it_prints_a_ratio_for_each_pair_and_their_median():
    report = overhead(model="small-cnn", dataset="fake:shape=1+8+8:train=64", pairs=3, crop=0, device="cpu", threads=1)
    ratios = [float(r) for r in re.findall(r"s = ([\d.]+)", report)]
    assert len(ratios) == 3
    assert all(r > 0 for r in ratios)
    assert f"median ratio {sorted(ratios)[1]:.3f}" in report
