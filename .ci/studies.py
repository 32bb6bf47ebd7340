"""Run the studies of papers at their small size, and fail if a claim that held does not hold any more.

Studies that need MNIST are run if BENCH_DATA is the folder of mnist.npz.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BENCH = Path(sys.executable).with_name("bench")
KNOWN = {  # beginnings of the claims that do not hold at this size; the study and README say why
    "reflected-convergence": ("Section 2: the cross entropy is an upper bound",),
    "lazy-regime": ("Figure 2: step size", "Figure 4, right: robust training becomes possible"),
    "convergence": ("Theorem 6.1 (the trend)",),
    "first-order": ("Figure 2: at the largest scale escapes are difficult",),
    "closed-forms": ("Eq. 5.27",),
    "gradients": (),
    "hessian": (),
    "connectivity": (),
    "difficulty": (
        "Section 4.3.1: two random difficulties",
        "Table 4.3: clean and PGD trainings are further apart than clean and FGSM",
        "Figure 4.21: features of easy examples",
    ),
    "subsets": ("Figure 4.17 (PGD, Linf 0.04): the hardest third generalizes worse",),  # on some processors
    "lipschitz": ("Table 4.5: the constant is larger at eps",),
    "instance-weights": (),
    "step-flops": ("Table 3.4 (mmr)",),
}
NEED_MNIST = ("lazy-regime", "first-order")


def claims_of(study: str) -> list[dict[str, str]]:
    command = [BENCH, "study", study, "--size", "small", "--json"]
    one_thread = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=one_thread)
    return json.loads(done.stdout)["claims"]


def main() -> None:
    studies = [study for study in KNOWN if study not in NEED_MNIST or os.environ.get("BENCH_DATA")]
    for study in KNOWN.keys() - studies:
        print(f"{study}: not run, because it needs MNIST and BENCH_DATA is not set")
    failed = []
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for study, claims in zip(studies, pool.map(claims_of, studies), strict=True):
            for claim in claims:
                print(f"{study}: {claim['claim']}: {claim['verdict']} ({claim['measured']})")
                if claim["verdict"] == "does not hold" and not claim["claim"].startswith(KNOWN[study]):
                    failed.append(f"{study}: {claim['claim']}")
    if failed:
        sys.exit("claims that do not hold any more:\n" + "\n".join(failed))


if __name__ == "__main__":
    main()
