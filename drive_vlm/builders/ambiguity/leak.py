"""Whether a question's text alone shows that it is ambiguous: a bag of words that is trained on other groups' questions."""

from collections.abc import Callable, Sequence
from typing import Any

from drive_vlm.builders.row_writer import Row

# Balanced accuracy of a classifier that sees no picture, at most. A coin has .5.
MOST = 0.55
# Rows of each label below which a classifier learns nothing.
_LEAST = 20


def question_of(row: Row) -> str:
    return str(row["question"])


def options_of(row: Row) -> str:
    """The four options without the order that shows which one is right."""
    return " ".join(sorted(row["choices"]))


def text_leak(
    rows: Sequence[Row], read: Callable[[Row], str] = question_of, folds: int = 5, seed: int = 0
) -> dict[str, Any]:
    """Balanced accuracy of `read(row)` -> ambiguous, predicted for groups that the classifier has not seen, and its telling words.

    TF-IDF of words and pairs of words, logistic regression with balanced classes (scikit-learn). {"balanced_accuracy": None,
    "reason"} where there are too few rows or groups. Raises ValueError where scikit-learn is not installed.
    """
    labels = [row["ambiguous"] for row in rows]
    groups = sorted({row["group"] for row in rows})
    short = {"balanced_accuracy": None, "rows": len(rows), "groups": len(groups)}
    least = min(labels.count(0), labels.count(1))
    if least < _LEAST or len(groups) < folds:
        reason = f"{least} rows of the rarer label in {len(groups)} groups; the check needs {_LEAST} in {folds}"
        return short | {"reason": reason}
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import balanced_accuracy_score
        from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
        from sklearn.pipeline import make_pipeline
    except ImportError as error:
        raise ValueError(
            f"the leak check needs scikit-learn ({error}); install it with `pip install drive-vlm[eval]`"
        ) from error
    texts = [read(row) for row in rows]
    model = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"\w+|\?"),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    )
    parts = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    said = cross_val_predict(model, texts, labels, groups=[row["group"] for row in rows], cv=parts)
    model.fit(texts, labels)
    weights = sorted(zip(model[1].coef_[0].tolist(), model[0].get_feature_names_out().tolist(), strict=True))
    return short | {
        "balanced_accuracy": round(float(balanced_accuracy_score(labels, said)), 4),
        "most": MOST,
        "folds": folds,
        "clear_words": [word for _, word in weights[:5]],
        "ambiguous_words": [word for _, word in weights[:-6:-1]],
    }


def leak_problem(found: dict[str, Any]) -> str | None:
    """What is wrong with a result of text_leak, in words."""
    if found["balanced_accuracy"] is None:
        return None
    if found["balanced_accuracy"] <= MOST:
        return None
    return (
        f"the text alone shows what is ambiguous: a bag of words has a balanced accuracy of {found['balanced_accuracy']:.3f} on "
        f"{found['rows']:,} questions of unseen groups, {MOST} is allowed; telling words: {', '.join(found['ambiguous_words'])} "
        f"(ambiguous), {', '.join(found['clear_words'])} (clear)"
    )
