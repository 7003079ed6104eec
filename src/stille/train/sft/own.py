"""`python -m stille.train.sft.own --prompts FILE --out FILE`: a model's own answers, to keep what it knew.

Mixed into data that teach something else, they hold a model to what it said before (Z. Yang et al., Self-Distillation
Bridges Distribution Gap in Language Model Fine-Tuning, 2402.13669).
"""

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from stille.engine.llm import LLM
from stille.engine.sampling_params import SamplingParams
from stille.errors import StilleError
from stille.train.draft.prompts import read_prompts


def main(
    prompts: Annotated[list[Path], typer.Option(help='Lines with "messages" or "prompt", repeatable.')],
    out: Annotated[Path, typer.Option(help="File of conversations.")],
    model: Annotated[str, typer.Option(help="What answers: the model that will be trained.")] = "stille-135m",
    most: Annotated[int, typer.Option(min=1, help="Tokens of an answer; longer ones are left out.")] = 256,
    count: Annotated[int | None, typer.Option(min=1, help="Prompts. (default: all)", show_default=False)] = None,
    temperature: Annotated[float, typer.Option(min=0, help="0: greedy.")] = 0.7,
    batch: Annotated[int, typer.Option(min=1, help="Answers at a time.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    seed: Annotated[int, typer.Option(help="Of the answers.")] = 0,
) -> None:
    """Have a model answer prompts, and keep the answers that came to their end."""
    scratch = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        asked = [each for each in read_prompts(prompts, 0) if each.messages][:count]
        llm = LLM(model, device=device, max_num_seqs=batch)
        limits = [
            SamplingParams(max_tokens=most, temperature=temperature, seed=(seed + each.key) % (1 << 48))
            for each in asked
        ]
        answers = llm.chat([list(each.messages) for each in asked], limits)
        kept = 0
        with scratch.open("w", encoding="utf-8") as file:
            for each, answer in zip(asked, answers, strict=True):
                said = answer.outputs[0]
                if said.finish_reason != "stop" or not said.text.strip():
                    continue
                before = [m if m["role"] != "assistant" else {**m, "weight": 0} for m in each.messages]
                row = {"messages": [*before, {"role": "assistant", "content": said.text.strip()}]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                kept += 1
        os.replace(scratch, out)
    except StilleError as error:
        raise typer.BadParameter(str(error)) from error
    finally:
        scratch.unlink(missing_ok=True)
    typer.echo(f"{out}: {kept:,} of {len(asked):,} answers; the others were cut or empty")


if __name__ == "__main__":
    typer.run(main)
