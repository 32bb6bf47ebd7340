import re

from bench.studies.overhead import OverheadStudy


def test_it_prints_a_ratio_for_each_pair_and_their_median():
    model, data = "small-cnn", "fake:shape=1+8+8:train=64"
    report = OverheadStudy(model=model, dataset=data, pairs=3, crop=0, device="cpu", threads=1).run()
    ratios = [float(r) for r in re.findall(r"s = ([\d.]+)", report)]
    assert len(ratios) == 3
    assert all(r > 0 for r in ratios)
    assert f"median ratio {sorted(ratios)[1]:.3f}" in report
