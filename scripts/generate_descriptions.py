"""Ask a language model for descriptions of classes, in LaFTer's format: {class: [sentence, …]}.

    OPENAI_API_KEY=… python scripts/generate_descriptions.py --base-url https://HOST/v1 --model NAME \\
        --dataset-config-file sun397 --root data --out configs/descriptions/SUN397.json
    python scripts/generate_descriptions.py --base-url http://localhost:8000/v1 --model NAME --classnames names.txt …

Any endpoint that serves OpenAI's chat completions will do. The key is read from OPENAI_API_KEY, sent to the endpoint
and told nobody else; a local server may need none. Sentences that the file has are kept, and it is written whole after
each class: started again, the program goes on where it stopped.
"""

from __future__ import annotations

import argparse
import email.utils
import http.client
import json
import logging
import os
import random
import re
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # run as a file, the project's folder is not there

import clip  # noqa: E402
from trainers.texts import read_descriptions  # noqa: E402
from utils.config import load_config  # noqa: E402
from utils.datasets.reading import read_names  # noqa: E402
from utils.datasets.table import check_classnames, load_dataset  # noqa: E402
from utils.errors import InputError  # noqa: E402
from utils.runs.record import write_text  # noqa: E402

log = logging.getLogger("generate_descriptions")

# the first two ask what LaFTer's prompts ask, the others what CuPL's do, in this project's words
QUESTIONS = (
    "How would you recognise {} in a photo?",
    "What does a photo of {} look like?",
    "Which parts, shapes and colours does one see in {}?",
    "What surroundings is {} usually seen in, and how does it look there?",
    "How does {} differ at first sight from things that are easily taken for it?",
)
ORDER = ("Answer with {count} plain English sentences, each on a line of its own and complete in itself, at most 25 "
         "words long. Each must name {name} and tell something else that can be seen. No numbers, no headings.")
SHORTEST = 4  # words; below it a line is a heading or a remark
LONGEST_WAIT = 60.0  # seconds between two attempts, where the server does not ask for more


class NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the key must not follow it to another host."""

    def redirect_request(self, *arguments):
        return None


class Endpoint:
    """An OpenAI-compatible chat endpoint. `attempts` requests are made at most, each of `timeout` seconds; between
    them it waits for a random part of `wait`·2ⁿ seconds, or as long as the server's Retry-After says."""

    def __init__(self, base_url: str, model: str, key: str = "", attempts: int = 6, timeout: float = 60.0,
                 wait: float = 2.0):
        if not re.match("https?://.", base_url):
            raise InputError(f"--base-url {base_url!r} must begin with http:// or https://")
        self.url = base_url.rstrip("/") + "/chat/completions"
        self.model, self.key, self.attempts, self.timeout, self.wait = model, key, attempts, timeout, wait
        self.opener = urllib.request.build_opener(NoRedirect)

    def ask(self, question: str) -> tuple[str, bool]:
        """(the answer, whether it is whole). Raises InputError for a refusal, or when all attempts have failed."""
        for attempt in range(1, self.attempts + 1):
            asked_wait = 0.0
            try:
                return self._request(question)
            except urllib.error.HTTPError as error:
                reason = self._redact(f"HTTP {error.code} {error.reason}: {_excerpt(error)}")
                if error.code not in (408, 409, 425, 429) and error.code < 500:
                    raise InputError(f"{self.url} refuses the request ({reason}); check --base-url, --model and the "
                                     "key in OPENAI_API_KEY") from None  # the server's text may repeat the key
                asked_wait = retry_after(error.headers.get("Retry-After"))
            except (OSError, http.client.HTTPException, ValueError) as error:  # no or half an answer, or no JSON
                reason = self._redact(f"{type(error).__name__}: {error}")
            if attempt < self.attempts:
                pause = max(asked_wait, random.uniform(0.5, 1) * min(self.wait * 2 ** (attempt - 1), LONGEST_WAIT))
                log.info("attempt %d of %d failed (%s); again in %.1f s", attempt, self.attempts, reason, pause)
                time.sleep(pause)
        raise InputError(f"{self.url} failed {self.attempts} times, at last with {reason}; start again to go on")

    def _request(self, question: str) -> tuple[str, bool]:
        body = {"model": self.model, "messages": [{"role": "user", "content": question}]}
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(self.url, json.dumps(body).encode(), headers)
        with self.opener.open(request, timeout=self.timeout) as response:
            content = json.loads(response.read())
        try:
            choice = content["choices"][0]
            return str(choice["message"]["content"] or ""), choice.get("finish_reason") != "length"
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ValueError(f"no chat completion: {str(content)[:100]}") from error

    def _redact(self, text: str) -> str:
        text = " ".join(text.split())
        return text.replace(self.key, "***") if self.key else text


def _excerpt(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(300).decode("utf-8", "replace")
    except (OSError, http.client.HTTPException):
        return "no text"


def retry_after(value: str | None) -> float:
    """The seconds that a Retry-After header asks for, as a number or as a date; 0 where it asks for none."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return 0.0


def parse_sentences(answer: str, whole: bool) -> list[str]:
    """The sentences in an answer, a line each, without list marks; a cut answer's last line is left out."""
    lines = answer.strip().splitlines()
    sentences = []
    for line in lines if whole else lines[:-1]:
        text = " ".join(re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).strip(" \"'“”").split())
        if len(text.split()) >= SHORTEST and text.endswith((".", "!")) and _fits(text):
            sentences.append(text)
    return sentences


def _fits(text: str) -> bool:
    try:
        return bool(len(clip.tokenize([text])))
    except clip.ClipError:
        return False  # too long for CLIP


def describe_class(endpoint: Endpoint, name: str, kept: Sequence[str], per_class: int) -> list[str]:
    """The kept sentences and new ones, `per_class` in all. Raises InputError where the answers hold nothing new."""
    sentences = list(kept)
    seen = {sentence.lower() for sentence in sentences}
    readable = name.replace("_", " ")
    dry = 0  # questions in a row that brought nothing
    number = 0
    while len(sentences) < per_class:
        count = max(3, min(10, per_class - len(sentences)))
        question = QUESTIONS[number % len(QUESTIONS)].format(repr(readable))
        answer = endpoint.ask(f"{question} {ORDER.format(count=count, name=repr(readable))}")
        new = [text for text in dict.fromkeys(parse_sentences(*answer)) if text.lower() not in seen]
        sentences += new[: per_class - len(sentences)]
        seen |= {text.lower() for text in new}
        dry, number = 0 if new else dry + 1, number + 1
        if dry == len(QUESTIONS):
            raise InputError(f"class {name!r}: the model's answers hold no new usable sentence ({len(sentences)} of "
                             f"{per_class}); try another --model or a smaller --per-class")
    return sentences


def generate(endpoint: Endpoint, classnames: Sequence[str], path: Path, per_class: int) -> None:
    """Fill `path` up to `per_class` sentences for each class; it is written after each class."""
    described = read_descriptions(str(path)) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(classnames, start=1):
        kept = described.get(name, [])
        if len(kept) >= per_class:
            continue
        described[name] = describe_class(endpoint, name, kept, per_class)
        write_text(path, json.dumps(described, indent=2, ensure_ascii=False) + "\n")
        log.info("%d of %d: %s, %d new sentences", number, len(classnames), name, len(described[name]) - len(kept))
    log.info("%s has %d sentences for each of %d classes", path, per_class, len(classnames))


def read_classnames(arguments: argparse.Namespace) -> list[str]:
    """From a text file, or from a data set that is present."""
    if arguments.classnames:
        names = read_names(arguments.classnames)
    else:
        cfg = load_config(arguments.dataset_config_file, flags={"DATASET.ROOT": arguments.root})
        names = load_dataset(cfg).classnames
    check_classnames(names)
    return names


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Ask a language model for descriptions of classes.")
    parser.add_argument("--base-url", required=True, help="such as https://HOST/v1; /chat/completions is added")
    parser.add_argument("--model", required=True, help="the model's name at the endpoint")
    parser.add_argument("--out", required=True, type=Path, help="the JSON file to fill")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--classnames", type=Path, help="a text file, a class name per line")
    source.add_argument("--dataset-config-file", default="", help="a data set whose classes are meant")
    parser.add_argument("--root", default="data", help="folder that holds the data sets")
    parser.add_argument("--per-class", type=int, default=30, help="sentences for each class")
    parser.add_argument("--attempts", type=int, default=6, help="requests for one answer before giving up")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for an answer")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds before the second attempt; they double")
    arguments = parser.parse_args(argv)
    endpoint = Endpoint(arguments.base_url, arguments.model, os.environ.get("OPENAI_API_KEY", ""), arguments.attempts,
                        arguments.timeout, arguments.wait)
    generate(endpoint, read_classnames(arguments), arguments.out, arguments.per_class)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        main()
    except (InputError, FileNotFoundError) as error:
        raise SystemExit(f"error: {error}") from error
