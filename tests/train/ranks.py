"""Run by test_distributed.py in each process: a short run in each way of sharing the work, stopped and resumed."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import torch

from stille.model import StilleConfig, StilleForCausalLM
from stille.train import DISTILL, LossWeights, TokenStore, TrainConfig, open_world, train


def main(file: Path) -> None:
    plan = json.loads(file.read_text())
    torch.set_num_threads(1)
    store = TokenStore.from_documents([np.array(row) for row in plan["documents"]])
    with open_world("cpu") as world:
        for name, (kind, dtype, parallel, rank) in plan["runs"].items():

            def model(experts: bool = True) -> StilleForCausalLM:
                torch.manual_seed(0)
                values = plan["model"] if experts else plan["model"] | dict(ffn_kinds=None, experts=None)
                return StilleForCausalLM(StilleConfig.from_dict(values))

            loss = DISTILL if kind == "distill" else LossWeights()
            config = TrainConfig.from_dict(
                {**plan["config"], "dtype": dtype, "parallel": parallel, "rank": rank}
                | {"loss": vars(loss), "dial": 0.5 if rank else 0.0}
            )
            teacher = model(False).to(torch.bfloat16 if dtype == "bf16" else torch.float32) if loss.kl else None
            out = Path(plan["out"]) / name

            def stop(progress) -> None:
                if progress.step == 3 and world.rank == world.size - 1:
                    os.kill(os.getpid(), signal.SIGINT)  # one process is asked to stop, all do

            first = train(model(), store, config, out, world=world, held_out=store, teacher=teacher, on_step=stop)
            assert (first.step, first.finished) == (3, False)
            result = train(model(), store, config, out, world=world, held_out=store, teacher=teacher)
            if world.main:
                state = {key: value.float() for key, value in result.model.state_dict().items()}
                torch.save({"model": state, "evaluation": result.evaluation}, out / "end.pt")
