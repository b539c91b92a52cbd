"""A chat model behind an OpenAI-compatible endpoint as the judge: GPT-4 in the paper, or a local `vllm serve`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import openai

from optune_core.errors import JudgeError, TransientError
from optune_core.evaluation.endpoint import api_key, is_final
from optune_core.evaluation.win_score.judge import Pair, Rating, Usage
from optune_core.evaluation.win_score.rating import parse_scores, rating_messages
from optune_core.evaluation.win_score.sections import OpenAIJudge
from optune_core.secrets import MASK, redact

_NO_KEY = "none"
"""Sent to endpoints that ask for none; the client insists on one."""


class ChatJudge:
    """Asks with temperature 0 and the paper's prompt, several pairs at a time.

    The client repeats requests that fail on the way (429, 5xx, time-outs), with growing pauses. A reply without two
    scores is asked for again, and counts as malformed after `attempts`.
    """

    def __init__(self, judge: OpenAIJudge) -> None:
        self._judge = judge
        self._key = api_key(judge, "judge")
        self._client = openai.OpenAI(
            api_key=self._key or _NO_KEY,
            base_url=judge.base_url,
            timeout=judge.timeout_seconds,
            max_retries=judge.retries,
        )

    def rate(self, pairs: Iterable[Pair]) -> Iterator[Rating]:
        """Yield a rating of each pair.

        Raises:
            JudgeError: the endpoint refuses, and asking again would not change that.
            TransientError: the endpoint failed, and asking again may help.
        """
        pool = ThreadPoolExecutor(self._judge.concurrency)
        asked: set[Future[Rating]] = set()
        try:
            for pair in pairs:
                asked.add(pool.submit(self._rate, pair))
                if len(asked) == self._judge.concurrency:
                    done, asked = wait(asked, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while asked:
                done, asked = wait(asked, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # an error, or the end of the process, waits for no reply

    def _rate(self, pair: Pair) -> Rating:
        messages = rating_messages(pair.prompt, pair.answers)
        prompt_tokens = completion_tokens = 0
        reply, problem = "", ""
        for attempt in range(1, self._judge.attempts + 1):
            answer = self._ask(messages)
            reply = (answer.choices[0].message.content if answer.choices else None) or ""
            if answer.usage is not None:
                prompt_tokens += answer.usage.prompt_tokens
                completion_tokens += answer.usage.completion_tokens
            usage = Usage(attempt, prompt_tokens, completion_tokens)
            try:
                scores = parse_scores(reply)
            except ValueError as error:
                problem = str(error)
                continue
            return Rating(pair.index, scores, reply.strip().partition("\n")[2].strip(), usage=usage)
        return Rating(pair.index, None, reply, problem, usage)

    def _ask(self, messages: list[dict[str, str]]) -> Any:
        judge = self._judge
        try:
            return self._client.chat.completions.create(
                model=judge.model,
                messages=messages,  # type: ignore[arg-type]
                temperature=0.0,
                max_tokens=judge.max_tokens,
            )
        except openai.APIStatusError as error:
            failure = f"judge {judge.model!r} at {judge.base_url}: {self._safe(error)}"
            if is_final(error):
                raise JudgeError(f"{failure}. Look at judge.model, judge.base_url and judge.api_key_env") from None
            raise TransientError(f"{failure}, {judge.retries + 1} times in a row") from None
        except openai.APIConnectionError as error:
            raise TransientError(
                f"judge {judge.model!r} at {judge.base_url} cannot be reached: {self._safe(error)}"
            ) from None

    def _safe(self, error: openai.APIError) -> str:
        text = redact(str(error))
        return text.replace(self._key, MASK) if self._key else text
