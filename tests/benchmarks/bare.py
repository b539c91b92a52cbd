"""One iteration as a bare script: the same engines and the same work in one process, without flow, store and commits.

    python -m tests.benchmarks.bare JOB.json

JOB holds config (overrides included), iteration, policy (an artifact's folder), selection and replay (Parquet files)
and folder, to which the policy is written.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from optune_core.config import parse_config
from optune_core.generation import sampling_seed
from optune_core.pairs import best_against_worst
from optune_core.replay import trainable
from optune_core.rewards.reward import Conversation
from optune_core.training.batches import plan_steps
from optune_core.training.layout import TokenPairs
from optune_core.training.logps import choose_kernel, compute_inside
from optune_core.training.reference import reference_logps, shards_of
from optune_core.training.trainer import PairData, PolicyTrainer, trainer_arguments
from optune_core.training.weights import load_master
from tests.benchmarks.policies import requests_for


def main() -> None:
    """Run the iteration of the job."""
    job = json.loads(Path(sys.argv[1]).read_text())
    config = parse_config(job["config"], source="job")
    policy, samples = Path(job["policy"]), config.generation.samples

    selection = pq.read_table(job["selection"])
    length = config.prompts.max_tokens + config.generation.max_tokens
    engine = config.generation.engine.start(config.generation, policy / "model", max_tokens=length)
    ids, tokens = selection["prompt_id"].to_pylist(), selection["prompt_token_ids"].to_pylist()
    requests = requests_for(tokens, samples, lambda row, k: sampling_seed(config.seed, job["iteration"], ids[row], k))
    responses = sorted(engine.generate(requests), key=lambda response: response.index)
    scorer = config.reward.open(None)
    prompts = [text for text in selection["prompt"].to_pylist() for _ in range(samples)]
    conversations = [Conversation(p, [], r.text) for p, r in zip(prompts, responses, strict=True)]
    rewards = scorer.score(conversations, lambda done: None)
    best_against_worst(
        pa.table(
            {
                "prompt_id": [prompt_id for prompt_id in ids for _ in range(samples)],
                "sample": list(range(samples)) * len(ids),
                "response_token_ids": [response.token_ids for response in responses],
                "reward": pa.array(rewards, pa.float64()),
                "outcome": ["ok"] * len(rewards),
            }
        ).combine_chunks()
    )

    replay = trainable(pq.read_table(job["replay"]))
    pairs, training = TokenPairs(replay), config.training
    model, precision = load_master(policy), getattr(torch, training.precision)
    compute_inside(model, choose_kernel(model, precision))
    steps = plan_steps(
        pairs.tokens(prompt_once=True).tolist(),
        batch_size=training.batch_size,
        micro_batch_tokens=training.micro_batch_tokens,
        processes=1,
        seed=0,
        epoch=0,
    )
    logps: dict[int, tuple[float, float]] = {}
    for shard in shards_of(steps, training.batch_size):
        for pack in shard:
            logps |= reference_logps(model.eval(), torch.device("cpu"), pairs, pack, precision)
    sides = [replay[f"{side}_reward"].to_pylist() for side in ("chosen", "rejected")]
    trainer = PolicyTrainer(
        model=model,
        args=trainer_arguments(training, output_dir=job["folder"], seed=0),
        config=training,
        steps=steps,
        data=PairData(pairs, torch.tensor([logps[row] for row in range(len(pairs))]).T, torch.tensor(sides)),
        epochs=1,
        callbacks=[],
    )
    trainer.train()
    trainer.model.save_pretrained(f"{job['folder']}/master")
    trainer.model.to(torch.bfloat16).save_pretrained(f"{job['folder']}/model")


if __name__ == "__main__":
    main()
