"""Text overlap of one prediction with one or several targets (the row's own answers, "references" in the papers): corpus BLEU-1..4, ROUGE-L and CIDEr.

The definitions are those of the COCO caption evaluation (Chen et al. 2015, arXiv 1504.00325; packages `pycocoevalcap`
and `language_evaluation`, which DriveLM's official script calls), without Java:

- BLEU: Papineni et al. 2002, over the whole corpus, closest target length, clipped counts; instead of smoothing
  1e-15 is added to every match count and 1e-9 to every n-gram count.
- ROUGE-L: Lin 2004, F with beta = 1.2, best precision and best recall over the targets, mean over the samples.
- CIDEr: Vedantam et al. 2015 (arXiv 1411.5726). What the package calls CIDEr clips counts and multiplies with a
  Gaussian of the length difference (sigma 6), as CIDEr-D does; lengths there count bigrams. idf comes from the
  targets of the evaluated set, so a single sample always scores 0. Scale 0-10.

The package tokenises with the Stanford PTBTokenizer (Java). `tokenize` reproduces it for plain English, DriveLM's
object tags and option letters, with its known effects: brackets survive as `-lrb-` (the list of removed punctuation
holds the upper-case name only), `<c1,CAM_BACK,1088.3,497.5>` becomes `< c1 cam_back ,1088.3,497.5 >`. Not reproduced:
web and e-mail addresses, file names, rare abbreviations, scripts other than Latin, and that a last "5 m." of a text
loses its period when the next text of the file happens to begin with a word such as "The".
"""

import math
import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

Tokens = list[str]
NGram = tuple[str, ...]
MAX_N = 4
ROUGE_BETA = 1.2
CIDER_SIGMA = 6.0

_PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_UNICODE = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", "€": "$", "½": "1/2"})
# Words that keep their period whatever follows them; "no." keeps it only before a number.
_ABBREVIATIONS = (
    "mr|mrs|ms|dr|prof|st|ave|blvd|rd|vs|etc|inc|co|corp|ltd|jr|sr|mt|gen|col|lt|sgt|capt|gov|sen|rep|rev|"
    "jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|wed|thu|fri|ph\\.d|al"
)
# A single letter keeps its period ("A. Going", "5 m.") unless one of these words opens the next sentence.
_STARTERS = (
    "The|In|It|This|That|If|He|She|We|They|You|A|An|And|But|When|There|These|Then|At|As|What|Our|One|After|While|So|"
    "However|Mr|Some|Her|Their|Here|Now|About|According|Since|Such|Other|Many|More|Last|Yet|Once"
)
_TOKEN = re.compile(
    rf"""
    <[!/?]?[a-z][a-z0-9_-]*\s*/?>                               # a tag such as <image>
  | (?<![^\W_])(?:{_ABBREVIATIONS})\.(?![a-z0-9])                # mr.  vs.
  | (?<![^\W\d])[a-z](?:\.[a-z])+\.(?![a-z0-9])                  # p.m.  u.s.
  | (?<![^\W\d])[a-z]\.(?![a-z0-9]|(?-i:\s+(?:{_STARTERS})\b))   # option letters and initials
  | \bno\.(?=\s*\d)
  | \d{{1,4}}/\d{{1,4}}(?:/\d{{2,4}})?(?![\w/])                   # 1/2  12/10/2020
  | [-+]?(?:\d+|(?=[.:,]\d))(?:[.,:]\d+)*(?![a-z0-9_/-]|[.,:]\d)  # -5  1,000.5  12:30  ,1088.3,497.5
  | [-+]?\d+(?:[.,:]\d+)+                                       # 3.5 of 3.5m
  | [a-z]+(?:\.[a-z]+)+                                         # two sentences with no blank between them
  | n't | '(?:s|m|d|re|ve|ll|em|til)\b
  | [a-z0-9]+(?=n't\b)                                          # is|n't
  | [^\W_]+(?:[-_/&'](?!(?:s|m|d|re|ve|ll)\b)[^\W_]+)*
  | [-+]\d+
  | \.{{2,}} | [!?]{{2,}} | -{{2,}} | \*+ | _+
  | \S
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SPLIT = {"cannot": ("can", "not"), "gonna": ("gon", "na"), "wanna": ("wan", "na"), "gimme": ("gim", "me")}


def tokenize(text: str) -> Tokens:
    """Lower-case words of `text` as the COCO caption evaluation counts them, punctuation removed."""
    tokens: Tokens = []
    for token in _TOKEN.findall(text.translate(_UNICODE)):
        token = token.lower()
        if token in _PUNCTUATION or token == '"' or set(token) in ({"-"}, {"."}):
            continue
        tokens.extend(_SPLIT.get(token, (_BRACKETS.get(token, token),)))
    return tokens


def ngram_counts(tokens: Tokens) -> Counter[NGram]:
    """Counts of all 1- to 4-grams."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, MAX_N + 1) for i in range(len(tokens) - n + 1))


def bleu_counts(hypotheses: Sequence[Tokens], targets: Sequence[Sequence[Tokens]]) -> np.ndarray:
    """float[N, 10]: what BLEU adds up over the samples: matched 1- to 4-grams, said 1- to 4-grams, length, length of the closest
    target. `hypotheses[i]` is counted against all of `targets[i]`.

    Raises ValueError where the lengths differ or a sample has no target.
    """
    _check(hypotheses, targets)
    counts = np.zeros((len(hypotheses), 2 * MAX_N + 2))
    for row, tokens, candidates in zip(counts, hypotheses, targets, strict=True):
        allowed: Counter[NGram] = Counter()
        for candidate in candidates:
            allowed |= ngram_counts(candidate)
        for gram, count in (ngram_counts(tokens) & allowed).items():
            row[len(gram) - 1] += count
        row[MAX_N : 2 * MAX_N] = [max(0, len(tokens) - n) for n in range(MAX_N)]
        row[2 * MAX_N :] = len(tokens), min((abs(len(c) - len(tokens)), len(c)) for c in candidates)[1]
    return counts


def bleu(sums: np.ndarray) -> np.ndarray:
    """BLEU-1..4, float[..., 4], of sums float[..., 10] of bleu_counts."""
    matched, said = sums[..., :MAX_N], sums[..., MAX_N : 2 * MAX_N]
    ratio = (sums[..., -2:-1] + 1e-15) / (sums[..., -1:] + 1e-9)
    penalty = np.exp(np.minimum(0.0, 1 - 1 / ratio))
    return np.cumprod((matched + 1e-15) / (said + 1e-9), axis=-1) ** (1 / np.arange(1, MAX_N + 1)) * penalty


def lcs_length(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence, in O(len * len) time and one row of memory."""
    row = [0] * (len(second) + 1)
    for token in first:
        diagonal = 0
        for j, other in enumerate(second, start=1):
            diagonal, row[j] = row[j], diagonal + 1 if token == other else max(row[j], row[j - 1])
    return row[-1]


def rouge_l(hypotheses: Sequence[Tokens], targets: Sequence[Sequence[Tokens]]) -> list[float]:
    """ROUGE-L F (beta 1.2) of each sample, 0-1. An empty text counts as one empty token, as in the package."""
    _check(hypotheses, targets)
    scores = []
    for tokens, candidates in zip(hypotheses, targets, strict=True):
        common = [lcs_length(tokens or [""], candidate or [""]) for candidate in candidates]
        precision = max(common) / max(len(tokens), 1)
        recall = max(c / max(len(candidate), 1) for c, candidate in zip(common, candidates, strict=True))
        weight = ROUGE_BETA**2
        score = (1 + weight) * precision * recall / (recall + weight * precision) if precision and recall else 0.0
        scores.append(score)
    return scores


def cider(hypotheses: Sequence[Tokens], targets: Sequence[Sequence[Tokens]]) -> list[float]:
    """CIDEr of each sample, 0-10: mean over n = 1..4 of the clipped tf-idf cosine with each target, times 10."""
    _check(hypotheses, targets)
    counted = [[ngram_counts(candidate) for candidate in candidates] for candidates in targets]
    document_frequency: Counter[NGram] = Counter()
    for candidates in counted:
        document_frequency.update(set().union(*candidates))
    log_documents = math.log(len(targets)) if targets else 0.0
    scores = []
    for tokens, candidates in zip(hypotheses, counted, strict=True):
        vector = _tf_idf(ngram_counts(tokens), document_frequency, log_documents)
        total = sum(_similarity(vector, _tf_idf(c, document_frequency, log_documents)) for c in candidates)
        scores.append(10.0 * total / len(candidates))
    return scores


def language_counts(hypotheses: Sequence[str], targets: Sequence[str | Sequence[str]]) -> np.ndarray:
    """float[N, 13]: what the six scores of raw texts add up: bleu_counts, ROUGE-L, CIDEr and 1 for the sample."""
    if not hypotheses:
        raise ValueError("no texts to score: BLEU, ROUGE-L and CIDEr are undefined for an empty set")
    words = [tokenize(text) for text in hypotheses]
    wanted = [[tokenize(t) for t in ([texts] if isinstance(texts, str) else texts)] for texts in targets]
    counts = bleu_counts(words, wanted)
    return np.column_stack([counts, rouge_l(words, wanted), cider(words, wanted), np.ones(len(words))])


def scores_of_counts(sums: np.ndarray) -> dict[str, np.ndarray]:
    """Bleu_1..4 (0-1), ROUGE_L (0-1) and CIDEr (0-10), float[...] each, of sums float[..., 13] of language_counts."""
    columns = np.moveaxis(bleu(sums[..., :-3]), -1, 0)
    scores = {f"Bleu_{n}": value for n, value in enumerate(columns, start=1)}
    return scores | {"ROUGE_L": sums[..., -3] / sums[..., -1], "CIDEr": sums[..., -2] / sums[..., -1]}


def language_scores(hypotheses: Sequence[str], targets: Sequence[str | Sequence[str]]) -> dict[str, float]:
    """The six numbers of DriveLM's language part from raw texts: Bleu_1..4 (0-1), ROUGE_L (0-1), CIDEr (0-10)."""
    sums = language_counts(hypotheses, targets).sum(axis=0)
    return {name: float(value) for name, value in scores_of_counts(sums).items()}


def _tf_idf(
    counts: Counter[NGram], document_frequency: Counter[NGram], log_documents: float
) -> tuple[list[dict[NGram, float]], int]:
    """Weights of the n-grams by n, and the length of the text as the package counts it: its bigrams."""
    vector: list[dict[NGram, float]] = [{} for _ in range(MAX_N)]
    for gram, count in counts.items():
        idf = log_documents - math.log(max(1, document_frequency[gram]))
        vector[len(gram) - 1][gram] = count * idf
    return vector, sum(count for gram, count in counts.items() if len(gram) == 2)


def _similarity(
    hypothesis: tuple[list[dict[NGram, float]], int], target: tuple[list[dict[NGram, float]], int]
) -> float:
    """Clipped cosine, averaged over n, times the Gaussian of the length difference: 0-1."""
    (mine, my_length), (theirs, their_length) = hypothesis, target
    total = 0.0
    for weights, wanted in zip(mine, theirs, strict=True):
        dot = sum(min(weights[gram], wanted[gram]) * wanted[gram] for gram in weights.keys() & wanted.keys())
        norm = math.sqrt(sum(w * w for w in weights.values())) * math.sqrt(sum(w * w for w in wanted.values()))
        total += dot / norm if norm else 0.0
    return total / MAX_N * math.exp(-((my_length - their_length) ** 2) / (2 * CIDER_SIGMA**2))


def _check(hypotheses: Sequence[Tokens], targets: Sequence[Sequence[Tokens]]) -> None:
    if len(hypotheses) != len(targets):
        raise ValueError(f"{len(hypotheses)} predictions but {len(targets)} sets of targets; give one set each")
    for index, candidates in enumerate(targets):
        if not candidates:
            raise ValueError(f"sample {index} has no target text")
