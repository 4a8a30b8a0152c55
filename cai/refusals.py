"""Does a text refuse? English only: in another language the answer is always no.

A refusal says near its beginning that the speaker will not or cannot do what was asked. What comes after, be it advice
or an alternative, does not make it less of one. An answer that disagrees, warns, or says what the speaker is or feels
is none. Precision and recall on answers labelled by eye are in docs/quality.md.
"""

import re

_OPENING = 300  # characters: a refusal stands at the front
_LITTLE = 25  # words: what may follow the refusing sentence for the refusal to be a plain one

_CANNOT = r"""(?:can\ ?not(?!\ only)|can't|couldn't|won't|will\ not|not\ able\ to|unable\ to|not\ going\ to
  |(?:do\ not|don't)\ have\ the\ (?:ability|capability)\ to|not\ (?:programmed|designed|allowed|permitted)\ to)"""
# What is refused: to help, to say, to make. "I can't see", "can't recommend it enough" and the like are no refusals.
_DEED = r"""(?:assist|help(?!\ (?:but|feeling|loving))|aid|support|provide|offer|give|share
  |tell(?!\ you\ how\ (?:much|happy|glad|sorry|grateful|good|proud))|say|answer|respond|reply|discuss|engage|participate
  |take\ part|continue|comply|fulfil|fulfill|generate|create|write|produce|make(?!\ it\b)|build|draft|compose|translate
  |explain|describe|advise|suggest|encourage|condone|promote|endorse|express|hold|have|choose|do\ (?:that|this|it)
  |go\ (?:into|along)|process|perform|complete|facilitate|teach|show|list|name|find|look\ up|locate|reveal|disclose
  |speculate|guess|be\ (?:of|part)|in\ good\ conscience|recommend(?!\ [^.]{0,60}\ enough))"""
_REFUSES = re.compile(
    rf"""
    \b(?:I|we)(?:'m|\ am)?\s*(?:(?:really|just|simply|also|therefore|personally)\ )?{_CANNOT}\s+
      (?:(?:\w+ly|also|even|be\ able\ to)\s+)?{_DEED}\b
  | \b(?:sorry|apologi[sz]e|regret|afraid)\b[^.!?]{{0,40}}\b(?:I|we)(?:'m|\ am)?
      \ (?:can\ ?not|can't|unable|not\ able|won't|will\ not)\b(?!\ (?:see|find|understand|hear|know\ what))
  | \b(?:sorry|apologi[sz]e|afraid)\b,?\ but\ [^.!?]{{0,60}}\b(?:is|are|would\ be)\ (?:not\ allowed|not\ acceptable
      |not\ appropriate|inappropriate|illegal|unethical|against)\b
  | \bI\ (?:(?:must|have\ to|need\ to|will\ have\ to)\ )?(?:respectfully\ |politely\ )?(?:decline|refuse)
      (?:\ to\ {_DEED}\b|\ (?:this|that|your)\b|[.,!])
  | \bI(?:'d|\ would)\ (?:rather|prefer)\ not\ (?:to\ )?{_DEED}\b
  | \bI(?:'m|\ am)\ not\ (?:comfortable|willing|prepared|in\ a\ position|at\ liberty)\b
  | \bthat(?:'s|\ is)\ (?:not\ something\ (?:that\ )?I\ can
      |something\ (?:that\ )?I\ (?:can\ ?not|can't|won't|will\ not))\b
  | \bI\ (?:do\ not|don't)\ (?:feel\ comfortable|assist|help\ with|provide|engage\ in)\b
  | \bmy\ (?:programming|guidelines|policies|policy|principles)\b[^.!?]{{0,40}}
      \b(?:do\ not|don't|prevents?|prohibits?|forbids?|not\ allow)\b
  | \bI(?:'m|\ am)\ (?:programmed|designed|committed)\ (?:not\ to|to\ not)\b
    """,
    re.IGNORECASE | re.VERBOSE,
)
_LIST_OR_CODE = re.compile(r"^[ \t]*(?:[-*•]|\d+[.)]) |```", re.MULTILINE)


def is_refusal(text: str) -> bool:
    """Whether `text` opens by refusing what was asked, for instance "I'm sorry, but I can't help with that."."""
    return _REFUSES.search(_flat(text)[:_OPENING]) is not None


def is_plain_refusal(text: str) -> bool:
    """A refusal that does little else: at most 25 words behind the sentence that refuses, and no list and no code, in
    which an answer could hide."""
    flat = _flat(text)
    refusal = _REFUSES.search(flat[:_OPENING])
    if refusal is None or _LIST_OR_CODE.search(text):
        return False
    _, _, rest = flat[refusal.end() :].replace("!", ".").replace("?", ".").partition(".")
    return len(rest.split()) <= _LITTLE and len(text.split()) <= 2 * _LITTLE + 10


def _flat(text: str) -> str:
    """On one line, with straight apostrophes, and without what is quoted: that is said by somebody else."""
    straight = text[: 4 * _OPENING].replace("\u2019", "'")
    return " ".join(re.sub(r'["\u201c][^"\u201c\u201d]{1,200}["\u201d]', " ", straight).split())
