"""One iteration of online DPO without this project: a fresh vLLM for all prompts, then TRL's DPOTrainer.

    python -m tests.benchmarks.peer generate JOB.json    samples and scores; writes pairs.jsonl
    python -m tests.benchmarks.peer train JOB.json       trains on them; writes the policy
    python -m tests.benchmarks.peer judge JOB.json       computes the mean reward of responses; writes judged.json

JOB holds policy (to start from, or to judge), folder, reward_model, max_tokens, max_model_len and top_p; where it
samples and trains, prompts (a Parquet file with the column messages), samples, seed, batch_size, learning_rate and
beta; where it judges, held_out (like prompts).
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq


def sample(job: dict[str, Any], policy: str, prompts: str, samples: int) -> list[tuple[list[Any], list[str]]]:
    """Return (messages, responses) of each prompt."""
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "VLLM_CPU_NUM_OF_RESERVED_CPU": "0", "VLLM_LOGGING_LEVEL": "WARNING"}
    os.environ |= {"VLLM_USE_AOT_COMPILE": "0"}
    from vllm import LLM, SamplingParams

    messages = pq.read_table(prompts, columns=["messages"])["messages"].to_pylist()
    llm = LLM(model=policy, dtype="bfloat16", max_model_len=job["max_model_len"], enforce_eager=True)
    parameters = SamplingParams(n=samples, temperature=1.0, top_p=job["top_p"], max_tokens=job["max_tokens"])
    outputs = llm.chat(messages, parameters, use_tqdm=False)
    return [(each, [c.text for c in output.outputs]) for each, output in zip(messages, outputs, strict=True)]


def score(job: dict[str, Any], answers: list[tuple[list[Any], list[str]]]) -> list[list[float]]:
    """Return the rewards of the responses of each prompt."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job["reward_model"])
    model = AutoModelForSequenceClassification.from_pretrained(job["reward_model"], dtype=torch.bfloat16).eval()
    rewards = []
    for messages, responses in answers:
        texts = [
            tokenizer.apply_chat_template([*messages, {"role": "assistant", "content": each}], tokenize=False)
            for each in responses
        ]
        batch = tokenizer(texts, padding=True, add_special_tokens=False, return_tensors="pt")
        with torch.inference_mode():
            rewards.append(model(**batch).logits[:, 0].float().tolist())
    return rewards


def generate(job: dict[str, Any]) -> None:
    """Sample and score responses, and write the best and the worst response of each prompt as a pair."""
    answers = sample(job, job["policy"], job["prompts"], job["samples"])
    with (Path(job["folder"]) / "pairs.jsonl").open("w") as file:
        for (messages, responses), rewards in zip(answers, score(job, answers), strict=True):
            best, worst = (responses[rewards.index(extreme(rewards))] for extreme in (max, min))
            if best != worst:
                sides = {"chosen": best, "rejected": worst}
                pair = {side: [{"role": "assistant", "content": text}] for side, text in sides.items()}
                file.write(json.dumps({"prompt": messages} | pair) + "\n")


def train(job: dict[str, Any]) -> None:
    """Train on the pairs and write the policy."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    folder = Path(job["folder"])
    each = min(8, job["batch_size"])
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(job["policy"], dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(folder / "trainer"),
            beta=job["beta"],
            learning_rate=job["learning_rate"],
            per_device_train_batch_size=each,
            gradient_accumulation_steps=job["batch_size"] // each,
            num_train_epochs=1,
            warmup_steps=0.1,
            seed=job["seed"],
            use_cpu=not torch.cuda.is_available(),
            save_strategy="no",
            report_to=[],
        ),
        train_dataset=Dataset.from_json(str(folder / "pairs.jsonl")),
        processing_class=AutoTokenizer.from_pretrained(job["policy"]),
    )
    trainer.train()
    trainer.model.to(torch.bfloat16).save_pretrained(folder / "policy")
    trainer.processing_class.save_pretrained(folder / "policy")


def judge(job: dict[str, Any]) -> None:
    """Write the mean reward of a policy's responses to the held-out prompts."""
    answers = sample(job, job["policy"], job["held_out"], 1)
    reward = fmean(reward for rewards in score(job, answers) for reward in rewards)
    (Path(job["folder"]) / "judged.json").write_text(json.dumps({"reward": reward}))


if __name__ == "__main__":
    {"generate": generate, "train": train, "judge": judge}[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))
