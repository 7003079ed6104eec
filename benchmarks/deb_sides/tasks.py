"""Standard tasks: what sides retain of the dense model's accuracy."""

from collections.abc import Mapping, Sequence

from hsa_sides.gpu import Records
from stille.evals import quality
from stille.ledger import measure
from stille.model import LoadedModel, StilleForCausalLM


def record_tasks(
    asked: Sequence[quality.Item],
    dense: LoadedModel,
    sides: Mapping[str, tuple[StilleForCausalLM, float]],
    chief: str,
    records: Records,
    command: str,
) -> None:
    """Accuracy of the sides (model and mean number of experts) as a share of the dense model's.

    Args:
        asked: the questions.
        dense: the model, and the tokenizer of all.
        sides: by name.
        chief: the side that has a goal, and a record for each task.
        records: are added to.
        command: that they name.
    """
    tokenizer = dense.tokenizer
    base = quality.run(quality.Subject(dense.model, tokenizer).answer, asked)
    print(f"tasks: base answered {len(asked):,} questions", flush=True)
    for side, (model, budget) in sides.items():
        given = quality.run(quality.Subject(model, tokenizer, budget).answer, asked)
        found = quality.compare(asked, base, given)
        main = side == chief
        if found.retention is None:
            print(f"tasks: {side}: the base is at chance in every task, nothing is recorded", flush=True)
            return
        kept, counted = found.retention, [task for task in found.tasks if task.counted]
        left_out = [f"{task.task} {task.base:.1%}" for task in found.tasks if not task.counted]
        notes = (
            f"Accuracy as a share of the dense model's, mean of tasks, {side}: asked for {budget:.3g} "
            f"experts. 95 % paired bootstrap interval {kept.low:.4f} to {kept.high:.4f}; above chance "
            f"{found.above_chance or 0:.3f}. Dense to this in percent: "
            + ", ".join(f"{t.task} {100 * t.base:.1f} to {100 * t.model:.1f} ({t.metric})" for t in counted)
            + f". {sum(t.samples for t in counted):,} questions. Left out, the base being at chance: "
            + (", ".join(left_out) or "none")
            + "."
        )
        goal = "value >= 0.98" if main else None
        name = "deb.convert.tasks" + ("" if main else f".{side}")
        records.append(measure(name, kept.value, "retention", command=command, goal=goal, notes=notes))
        for task in counted if main else []:
            assert task.retention is not None
            notes = (
                f"{task.task}: {task.metric} as a share of the dense model's. {task.samples:,} questions, interval "
                f"{task.retention.low:.4f} to {task.retention.high:.4f}; only the dense model right {task.worse}, only "
                f"this {task.better}."
            )
            value = task.retention.value
            records.append(measure(f"deb.convert.tasks.{task.task}", value, "retention", command=command, notes=notes))
