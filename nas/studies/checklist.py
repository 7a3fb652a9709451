"""The best-practice checklist for architecture search (Lindauer & Hutter 2020).

The manifests and configurations of the runs answer it. Each answer is yes, or no with the reason.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from nas.report.run_files import mapping
from nas.settings.dotted import leaves
from nas.studies.collected import Run
from nas.studies.plan import Plan

SEVERAL = 4  # seeds
Answer = tuple[str, str]  # yes or no, and what that rests on


def checklist(
    plan: Plan, runs: Sequence[Run], configs: Sequence[Mapping[str, Any]], *, baselines: Collection[str]
) -> list[dict[str, str]]:
    """Returns one row for each point.

    configs: the resolved configurations of the runs that have one. baselines: names of the baselines in the report.
    """
    manifests = [one for run in runs for one in (run.manifest, *run.retrainings) if one]
    commits = {str(manifest.get("commit")) for manifest in manifests}
    clean = len(commits) == 1 and all(c not in ("None",) and not c.endswith("-dirty") for c in commits)
    of_code = yes(clean, f"commit {', '.join(sorted(commits)) or 'unknown'}")
    retrained = plan.command == "run" or plan.retrain is not None
    final = "a benchmark's published training" if plan.benchmark is not None and not retrained else "nas-retrain"
    trained = retrained or plan.benchmark is not None
    none = ("no", "no final network is trained")
    tuned = [name for name in plan.methods if name in plan.tuning]
    comparison: list[tuple[str, Answer]] = [
        (
            "all methods see the same data and splits",
            same(configs, ("data", "search.weight_fraction", "search.one_level")),
        ),
        ("all methods search the same space", same(configs, ("space", "ops", "keep"))),
        (
            "the final networks are trained alike",
            same(configs, ("retrain", "task", "teacher")) if retrained else ("yes", final) if trained else none,
        ),
        ("all runs had the same hardware and software", machines(manifests)),
        ("ablations are given", named(plan.ablations)),
        ("confounders are named", named(plan.confounders)),
        (f"there are several seeds ({SEVERAL} or more)", yes(len(plan.seeds) >= SEVERAL, str(len(plan.seeds)))),
        ("there are random baselines", random_baselines(plan, baselines)),
    ]
    settings = yes(len(configs) == len(runs), f"{len(configs)} of {len(runs)} runs left a config.yaml")
    code: list[tuple[str, Answer]] = [
        ("the code of the search is given", of_code),
        (
            "the code that trains the final networks is given",
            (of_code[0], f"{final}; {of_code[1]}") if trained else none,
        ),
        ("the seeds are given", ("yes", f"search {listed(plan.seeds)}" + of_retraining(plan))),
        ("all settings are given", settings),
    ]
    timed = all(run.seconds.get("search") and len(run.retrainings) >= len(run.retrained) for run in runs)
    cost: list[tuple[str, Answer]] = [
        ("the time of every run is given", yes(timed, "see the costs")),
        (
            "what tuning took is given",
            yes(len(tuned) == len(plan.methods), f"{len(tuned)} of {len(plan.methods)} methods"),
        ),
    ]
    points = [
        (group, *row) for group, rows in (("code", code), ("comparison", comparison), ("cost", cost)) for row in rows
    ]
    return [{"group": group, "point": point, "answer": answer, "why": why} for group, point, (answer, why) in points]


def yes(holds: bool, why: str) -> Answer:
    return ("yes" if holds else "no"), why


def named(things: Sequence[str]) -> Answer:
    return yes(bool(things), "; ".join(things) or "none are named")


def random_baselines(plan: Plan, of_table: Collection[str]) -> Answer:
    uniform = [name for name, settings in plan.methods.items() if "sampler=uniform" in settings]
    found = [*of_table, *uniform]
    return yes(bool(found), ", ".join(found) or "no benchmark table is given, and no method has sampler=uniform")


def listed(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))


def of_retraining(plan: Plan) -> str:
    return "" if plan.retrain is None else f", retraining {listed(plan.retrain.seeds)}"


def same(configs: Sequence[Mapping[str, Any]], settings: Sequence[str]) -> Answer:
    """Answers whether the configurations agree in these settings and in all settings below them."""
    within: Callable[[str], bool] = lambda name: any(name == s or name.startswith(f"{s}.") for s in settings)  # noqa: E731
    found = [{name: value for name, value in leaves(dict(config)).items() if within(name)} for config in configs]
    if not found:
        return "no", "no run left a config.yaml"
    differing = sorted(
        {name for one in found for name in one.keys() | found[0].keys() if one.get(name) != found[0].get(name)}
    )
    return yes(not differing, f"differ in {', '.join(differing[:5])}" if differing else "equal in all configurations")


def machines(manifests: Sequence[Mapping[str, Any]]) -> Answer:
    kinds = {str((m.get("device"), m.get("platform"), sorted(mapping(m.get("versions")).items()))) for m in manifests}
    if not manifests:
        return "no", "no run left a manifest"
    return yes(len(kinds) == 1, str(manifests[0].get("device")) if len(kinds) == 1 else f"{len(kinds)} kinds")
