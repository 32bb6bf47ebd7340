"""The command of a record makes the same run again."""

import shlex
from pathlib import Path

import pytest

from bench.cli import parser
from bench.commands.runs import request_of
from bench.runs.plan import make_plan
from bench.runs.request import Request

REQUESTS = [
    Request(defense="atas"),
    Request(defense="atas", suite="digits", overrides={"epochs": "3", "lr": "0.05"}, n_examples=50),
    Request(defense="pgd-at", dataset="digits", norm="L2", eps=(0.5, 1 / 3), model="fc1:activation=tanh"),
    Request(defense="l-per", attacks=["pgd:steps=3", "fgsm"], certifiers=["crown-ibp", "ibp"]),
    Request(defense="standard", attacks=[], budget=90),
    Request(defense="standard", attacks=[], budget=1000, time_limit=90.125),
    Request(defense="standard", attacks=[], threads=2),
    Request(defense="standard", attacks=["fgsm"], eval_batch=50),
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_command_makes_the_same_request(request_):
    words = shlex.split(request_.command_line(7))
    args = parser().parse_args(words[1:])
    again = request_of(args)
    assert (words[0], args.seeds) == ("bench", [7])
    assert make_plan(again).config == make_plan(request_).config
    assert make_plan(again).threads == make_plan(request_).threads


def test_a_batch_of_the_evaluation_is_part_of_the_run_but_not_of_the_training():
    small, suite = (make_plan(Request(defense="standard", attacks=["fgsm"], eval_batch=n)) for n in (50, None))
    assert (small.config.eval_batch, suite.config.eval_batch) == (50, 360)
    assert small.config.content_hash != suite.config.content_hash
    assert small.training_identity == suite.training_identity


def test_the_command_of_an_evaluation_names_no_path_of_this_machine():
    request = Request(checkpoint=Path("/home/me/net.pt"), suite="mnist", data_dir=Path("/home/me/data"))
    assert request.command_line(0) == "bench eval --checkpoint net.pt --suite mnist --seeds 0"


def test_words_with_spaces_are_quoted():
    assert "'a b'" in Request(defense="a b").command_line(0)


@pytest.mark.parametrize(("threads", "model", "stated"), [
    (None, "small-cnn", None), (1, "small-cnn", None), (2, "small-cnn", 2), (1, "resnet18", 1), (3, "resnet18", 3),
])  # fmt: skip
def test_the_number_of_threads_is_part_of_a_training_where_machines_would_choose_others(threads, model, stated):
    plan = make_plan(Request(defense="standard", model=model, threads=threads, attacks=[], device="cpu"))
    words = shlex.split(plan.command_line(0))
    assert ("--threads" in words) == (stated is not None) == ("threads" in plan.training_identity)
    if stated is not None:
        assert words[words.index("--threads") + 1] == str(plan.training_identity["threads"]) == str(stated)


def test_a_large_model_states_the_threads_of_the_machine(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(5))
    plan = make_plan(Request(defense="standard", model="resnet18", attacks=[], device="cpu"))
    assert plan.command_line(0).endswith("--threads 5 --seeds 0")
