"""What a model could learn from the pairs that has nothing to do with the constitution: length, refusal, style."""

from collections.abc import Mapping, Sequence
from typing import Any

from cai.dataset import DecidedPair
from cai.hygiene import prompt_key
from cai.ids import digest
from cai.refusals import is_refusal
from cai.seal import Json

FEWEST_PAIRS = 40
_MOST_PAIRS = 5_000


def two_sides(pairs: Sequence[DecidedPair]) -> Json:
    """Mean length in words and share of refusals of the chosen and of the rejected answers.

    `longer_chosen` is how often the longer answer is the chosen one, of the pairs in which one is longer.
    """
    lengths = [(len(pair.chosen.split()), len(pair.rejected.split())) for pair in pairs]
    uneven = [(chosen, rejected) for chosen, rejected in lengths if chosen != rejected]
    return {
        "chosen": _side([pair.chosen for pair in pairs]),
        "rejected": _side([pair.rejected for pair in pairs]),
        "longer_chosen": _share(sum(chosen > rejected for chosen, rejected in uneven), len(uneven)),
    }


def _side(texts: Sequence[str]) -> Json:
    words = sum(len(text.split()) for text in texts)
    return {
        "mean_words": round(words / len(texts), 1) if texts else None,
        "refusals": _share(sum(is_refusal(text) for text in texts), len(texts)),
    }


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 4) if whole else None


def separability(pairs: Sequence[DecidedPair], groups: Mapping[str, str]) -> Json:
    """Can a classifier that sees single words only tell a chosen answer from a rejected one?

    Logistic regression on word counts, five-fold, with no prompt group both trained and tested on; of very large sets
    5,000 pairs, by hash. `verdict` is "too_few" (under 40 pairs, or under ten groups), "style" (area under the curve
    from 0.8 on: the words alone give it away, and a model trained on the pairs learns those words), "leaning" (from
    0.65 on) or "content". `chosen_words` and `rejected_words` are the words that tell most.
    """
    picked = sorted(pairs, key=lambda pair: digest(["separability", pair.pair_id]))[:_MOST_PAIRS]
    names = [groups[prompt_key(pair.prompt)] for pair in picked]
    facts: Json = {"pairs": len(picked), "auc": None, "verdict": "too_few", "chosen_words": [], "rejected_words": []}
    if len(picked) < FEWEST_PAIRS or len(set(names)) < 10:
        return facts
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import GroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    texts = [text for pair in picked for text in (pair.chosen, pair.rejected)]
    labels = [1, 0] * len(picked)
    count: Any = CountVectorizer(max_features=20_000, token_pattern=r"(?u)\b\w+\b")
    model: Any = make_pipeline(count, LogisticRegression(max_iter=1000))
    try:
        scores: Any = cross_val_predict(
            model, texts, labels, groups=[name for name in names for _ in range(2)], cv=GroupKFold(5),
            method="predict_proba",
        )  # fmt: skip
        model.fit(texts, labels)
    except ValueError:  # texts without a single word: nothing to tell them by
        return facts
    auc = round(float(roc_auc_score(labels, scores[:, 1])), 3)
    ranked = sorted(zip(model[1].coef_[0], model[0].get_feature_names_out(), strict=True))
    return facts | {
        "auc": auc,
        "verdict": verdict_on(auc),
        "chosen_words": [str(word) for _, word in reversed(ranked[-8:])],
        "rejected_words": [str(word) for _, word in ranked[:8]],
    }


def verdict_on(auc: float) -> str:
    """What an area under the curve says of the pairs, see `separability`."""
    return "style" if auc >= 0.8 else "leaning" if auc >= 0.65 else "content"
