"""A judged pair in the terminal: both answers, each verdict with the rule it was made by, and the label."""

from collections.abc import Mapping

from rich.console import Console

from cai.screen import plain
from cai.screen_words import KEY, boxed, origin_in_words, say, words_mass
from cai.seal import Json

# Why a label decides nothing, in words.
UNDECIDED = {
    "too_few_readable": "too few of the verdicts could be read",
    "order_decides": "the two orders name different answers",
    "tie": "the probability is too near to one half",
    "principles_conflict": "the principles disagree",
}
_ORDERS = {"ab": "a shown first", "ba": "b shown first", "none": "each alone"}


def print_pair(screen: Console, judged: Json, wording: Mapping[str, Json]) -> None:
    """A pair, its verdicts and its label."""
    pair, label = judged["pair"], judged["label"]
    screen.rule(f"pair {plain(pair['pair_id'])}")
    for side in ("a", "b"):
        chosen = ", chosen" if label["chosen"] == side else ""
        boxed(screen, pair[side], f"{side}: {origin_in_words(pair[f'{side}_from'])}{chosen}")
    for place, one in enumerate(judged["verdicts"]):
        if not place or judged["verdicts"][place - 1]["principle_id"] != one["principle_id"]:
            say(screen, f"principle {one['principle_id']}", "bold")
            if one["principle_id"] in wording:
                asked = "statement" if one["order"] == "none" else "comparison"  # as the judge was asked
                say(screen, f"  {wording[one['principle_id']][asked]}", "italic")
        _print_verdict(screen, one)
    if any(_alone(one) for one in judged["verdicts"]):
        say(
            screen,
            "  Each answer was judged alone, so the judge may say the same word of both. What counts is how much "
            "likelier Good was than Bad for a, against the same for b.",
        )
    _print_label(screen, label)


def _alone(one: Json) -> bool:
    return one["order"] == "none"


def _print_verdict(screen: Console, one: Json) -> None:
    soft = "unread" if one["probability_a"] is None else f"P(a is better) = {one['probability_a']:.3f}"
    mass = "" if one["letter_mass"] is None else f" ({words_mass(one['letter_mass'])})"
    words = one["raw"].split(" / ")
    said = f"{words[0]!r} of a, {words[1]!r} of b" if _alone(one) and len(words) == 2 else repr(one["raw"])
    calls = ", ".join(call[:KEY] for call in one["calls"])
    say(screen, f"  {_ORDERS[one['order']]}, {one['mode']}: {soft}{mass}, said {said}, calls {calls}")
    if one["reasoning"]:
        boxed(screen, one["reasoning"], "reasoning")


def _print_label(screen: Console, label: Json) -> None:
    soft, told = label["probability_a"], list[str]()
    if soft is None:
        told.append("label: P(a is better) is not known")
    else:
        told.append(f"label: P(a is better) = {soft:.3f}, so P(b is better) = {1 - soft:.3f}")
    why = f" ({label['reason']}: {UNDECIDED.get(label['reason'], '')})" if label["reason"] else ""
    told.append(f"chosen {label['chosen']}{why}")
    if label["margin"] is not None:
        told.append(f"margin {label['margin']:.3f}")
    if label["position_gap"] is not None:
        told.append(f"position gap {label['position_gap']:.3f}")
    if label["reviewed"] is not None:
        told.append(f"a person says {label['reviewed']}, the judge had said {label['judged']}")
    say(screen, "; ".join(told), "bold")
    say(
        screen,
        f"judge {label['judge']}, seed {label['seed']}, constitution {label['constitution']} "
        f"{label['constitution_sha'][:KEY]}, templates {label['templates_sha'][:KEY]}",
    )
