"""The final score of a retrained network: ``result.json``, and what the report shows of it."""

from typing import Any

from nas.cli.stages.for_report import one_latency, write_mistakes
from nas.cli.stages.objective import Objective
from nas.cli.stages.retrain import RetrainStage
from nas.cli.stages.setup import Setup
from nas.storage import atomic
from nas.storage.metrics_log import JsonLines
from nas.storage.run_directory import RunDirectory
from nas.supernet.genotype import Genotype
from nas.training.mistakes import Mistakes
from nas.training.records import genotype_texts, scores
from nas.training.trained import Trained, check_finite, final_result, scoring_loader, validation_result


class FinalScore:
    """Scores a network on the test split, and writes ``result.json``.

    result: see `final_result`. measured: by what the objective asks for.
    """

    def __init__(
        self, setup: Setup, retrain: RetrainStage, trained: Trained, objective: Objective | None, out: RunDirectory
    ) -> None:
        self.setup, self.trained, self.out = setup, trained, out
        # First what a sweeper is given: the test split is read after that.
        validated = retrain.validated(trained)
        spec = setup.data.spec
        self.measured = {} if objective is None else objective.measured(lambda: trained.network, spec, validated)
        self._before = validation_result(validated, setup.task.metric)
        self._before |= {"objective": self.measured} if self.measured else {}
        self.loader, self._mistakes = scoring_loader(trained, setup.data, setup.runtime), Mistakes()
        self.result = final_result(trained, self.loader, spec, look=self._mistakes.add, write=self.write)

    def write(self, found: dict[str, Any]) -> None:
        atomic.write_json(self.out.path / "result.json", found | self._before)

    def finish(self, tracker: JsonLines, genotype: Genotype, result: dict[str, Any]) -> None:
        """Logs the scores. Raises DivergenceError if the loss is not finite."""
        tracker.finish(scores(result), texts=genotype_texts(genotype))
        check_finite(result)
        write_mistakes(self._mistakes, self.setup.data, self.out.path)
        self.out.record(latency=one_latency(self.trained, self.loader))
