"""The words by which the rules of `constitution_lint` go."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Verbs that many statements have; a word after 'the answer' that ends in s is taken for one too.
VERBS = _words("""
    are aren be been can cannot could did do does doesn don had has have is isn may might must mustn need
    needs ought shall should shouldn was will won would
""")
# With which a statement may begin that is written as an order.
DEEDS = _words("""
    admit allow answer ask avoid be choose cite correct decline describe discourage do encourage explain
    follow give help ignore keep leave let make mention name never not offer pick point prefer prioritize
    protect provide put quote refrain refuse reject respect respond say select show speak state stay stop
    support take tell treat use warn write
""")
# Words that say nothing about what a wording is about.
EMPTY = _words("""
    a ai all always an and answer answers any anyone anything are argument as assistant at avoid be being best
    both but by choose conduct content could critique discuss do does doesn don every everyone everything
    explain extremely for from generally give gives have human humans i identify in into is isn it its keep
    keeps language last less make makes manner many may model more most much must never no nor not of one only
    or overall people person please possible possibly preceding provide really reply respond responds response
    responses s said select should shouldn so some something specific strongest such t than that the their
    them they thing things to towards truly try user users very was way ways were what whether which will with
    you your
""")
# Praise and blame: what they mean is an opinion.
PRAISE = _words("""
    acceptable appropriate awful bad beneficial benevolent caring considerate correct dangerous decent ethical
    evil excellent fair fine friendly good great harm harmful harmless helpful high honest humane immoral
    inappropriate integrity just justice kind lovely moral morality morals nice objectionable offensive
    perfect pleasant polite problematic proper quality reasonable reliable respectful responsible right safe
    sensible sensitive socially suitable thoughtful toxic trustworthy unacceptable unethical unfair unsafe
    useful virtuous well wise wrong
""")
# Faults and virtues that are different things each: three of them are three duties.
FAULTS = _words("""
    abusive aggressive biased cruel dangerous deceptive derogatory discriminatory dishonest ethical friendly
    harmful harmless hateful helpful honest illegal immoral insulting kind misleading obscene offensive
    peaceful polite racism racist respectful rude sexism sexist sexual thoughtful threatening toxic toxicity
    unethical violent wise
""")
# Words that turn a wording into its opposite.
NOT = _words("""
    avoid avoids cannot doesn don isn mustn never no nor not refrain refrains refuse refuses shouldn without
    won
""")
# Words with an opposite: both sides of each pair.
OPPOSITES: tuple[tuple[frozenset[str], frozenset[str]], ...] = tuple(
    (_words(left), _words(right))
    for left, right in (
        ("brief short concise shorter briefly", "long detailed lengthy longer thorough length detail"),
        ("more most", "less least fewer fewest"),
        ("formal formally", "informal casual informally"),
        ("encourage encourages", "discourage discourages"),
        ("neutral objective balanced impartial", "opinionated partisan biased"),
        ("include includes provide provides give gives", "omit omits exclude excludes withhold withholds"),
        ("allow allows", "forbid forbids prohibit prohibits"),
        ("simple plain", "complex technical"),
    )
)
# Behind which another word with an opposite is turned, as by "not": "less formal".
LESS = frozenset({"less", "least"})
DEGREES = LESS | {"more", "most"}
# What stands between an answer and its verb.
ADVERBS = _words("""
    again already also always both either ever first just merely neither never nor not often only rather seldom so
    sometimes soon still then thus too
""")
# What ends the reach of a "not" in front of it.
BREAKS = frozenset({"and", "but", "or", "nor", "while", ",", ";", ":", "."})
# Common words of English that are no words of the languages with its letters: one in fifteen is enough for English.
ENGLISH = _words("""
    about and answer answers any anybody anyone are avoid be because better both but by cannot choose could critique
    discuss does doing each every everyone everything explain gives harmful have help helpful his how if instead
    into it its keeps leaves look make makes many might most must never nobody nothing often only other people
    please quoted read reader readers reads really remove reply response responses rewrite says should shows some
    somebody someone something than that the their them these they thing things this those towards truly unless up
    user users very wants what when where whether which while who whole whose why with without word words worse
    worth would years you your
""")
TURNS = frozenset(word for pair in OPPOSITES for side in pair for word in side)
