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
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_command_makes_the_same_request(request_):
    words = shlex.split(request_.command_line(7))
    args = parser().parse_args(words[1:])
    again = request_of(args)
    assert (words[0], args.seeds) == ("bench", [7])
    assert make_plan(again).config == make_plan(request_).config


def test_the_command_of_an_evaluation_names_no_path_of_this_machine():
    request = Request(checkpoint=Path("/home/me/net.pt"), suite="mnist", data_dir=Path("/home/me/data"), threads=2)
    assert request.command_line(0) == "bench eval --checkpoint net.pt --suite mnist --seeds 0"


def test_words_with_spaces_are_quoted():
    assert "'a b'" in Request(defense="a b").command_line(0)
