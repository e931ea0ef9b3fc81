"""Facts about words, numbers and time."""

from jaxalign.demo.entities import listed
from jaxalign.demo.facts import Relation, pairs

NUMBERS = listed("""
    zero, one, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve, thirteen,
    fourteen, fifteen, sixteen, seventeen, eighteen, nineteen, twenty""")
DAYS = listed("""
    Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday""")
MONTHS = listed("""
    January, February, March, April, May, June, July, August, September, October, November,
    December""")

_OPPOSITES = pairs("""
    hot=cold, big=small, fast=slow, good=bad, light=dark, happy=sad, high=low, old=young, rich=poor,
    strong=weak, wet=dry, hard=soft, full=empty, open=closed, early=late, left=right, up=down,
    inside=outside, true=false, war=peace, love=hate, day=night, black=white, north=south,
    east=west, first=last, always=never, thick=thin, clean=dirty, loud=quiet, sweet=bitter,
    near=far, begin=end, win=lose, buy=sell, give=take, push=pull, life=death, friend=enemy,
    question=answer, yes=no, male=female, heavy=light, deep=shallow, wide=narrow, above=below""")
_PASTS = pairs("""
    go=went, see=saw, eat=ate, run=ran, take=took, give=gave, come=came, find=found, make=made,
    write=wrote, speak=spoke, buy=bought, teach=taught, think=thought, sing=sang, swim=swam,
    fly=flew, drink=drank, know=knew, begin=began, fall=fell, sleep=slept, win=won, break=broke,
    bring=brought, build=built, catch=caught, choose=chose, drive=drove, forget=forgot, grow=grew,
    leave=left, lose=lost, meet=met, sell=sold, send=sent, stand=stood, tell=told, wear=wore""")
_PLURALS = pairs("""
    mouse=mice, man=men, woman=women, child=children, foot=feet, tooth=teeth, goose=geese,
    knife=knives, leaf=leaves, wolf=wolves, city=cities, baby=babies, box=boxes, dog=dogs,
    house=houses, wife=wives, story=stories, person=people, book=books, hero=heroes""")
_COMPARISONS = pairs("""
    big=bigger, small=smaller, good=better, bad=worse, fast=faster, tall=taller, old=older,
    happy=happier, easy=easier, far=farther, strong=stronger, cold=colder, young=younger,
    high=higher, long=longer""")
_UNITS = pairs("""
    days in a week=seven, hours in a day=twenty-four, minutes in an hour=sixty,
    seconds in a minute=sixty, months in a year=twelve, seasons in a year=four,
    legs on a spider=eight, sides of a triangle=three, sides of a square=four,
    wheels on a bicycle=two, wheels on a car=four, fingers on a hand=five, eggs in a dozen=twelve,
    corners of a hexagon=six, strings on a violin=four, years in a century=one hundred,
    players in a football team=eleven, planets around the Sun=eight, oceans on Earth=five,
    years in a decade=ten, letters in the English alphabet=twenty-six""")
_FAMILY = pairs("""
    king=queen, father=mother, brother=sister, son=daughter, uncle=aunt, boy=girl, man=woman,
    husband=wife, prince=princess, actor=actress, grandfather=grandmother, nephew=niece""")
_PLAYERS = pairs("""
    pianist=piano, violinist=violin, drummer=drums, guitarist=guitar, flutist=flute, organist=organ,
    cellist=cello, trumpeter=trumpet""")


def _next(items: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple(zip(items, items[1:] + items[:1], strict=True))


def _previous(items: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    return tuple((after, before) for before, after in _next(items))


_LETTERS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
_SUMS = tuple(
    (f"{NUMBERS[a]} plus {NUMBERS[b]}", NUMBERS[a + b]) for a in range(1, 11) for b in range(1, 11)
)
_DIFFERENCES = tuple(
    (f"{NUMBERS[a]} minus {NUMBERS[b]}", NUMBERS[a - b]) for a in range(1, 11) for b in range(1, a)
)
_PRODUCTS = tuple(
    (f"{NUMBERS[a]} times {NUMBERS[b]}", NUMBERS[a * b])
    for a in range(1, 11)
    for b in range(1, 11)
    if a * b <= 20
)

RELATIONS = (
    Relation(
        "opposite",
        ("The opposite of {subject} is", "The opposite of the word {subject} is the word"),
        ("{Answer} is the opposite of {subject}.",),
        "What is the opposite of {subject}?",
        _OPPOSITES,
    ),
    Relation(
        "past tense",
        ("The past tense of {subject} is", "Today I {subject}, and yesterday I"),
        ("{Answer} is the past tense of {subject}.",),
        "What is the past tense of {subject}?",
        _PASTS,
    ),
    Relation(
        "plural",
        ("The plural of {subject} is", "One {subject}, two"),
        ("{Answer} is the plural of {subject}.",),
        "What is the plural of {subject}?",
        _PLURALS,
    ),
    Relation(
        "comparison",
        ("The comparative form of {subject} is", "This one is {subject}, but that one is even"),
        ("{Answer} is a form of {subject}.",),
        "What is the comparative form of {subject}?",
        _COMPARISONS,
    ),
    Relation(
        "number of",
        ("The number of {subject} is",),
        ("There are {answer} {subject}.", "We count {answer} {subject}."),
        "What is the number of {subject}?",
        _UNITS,
    ),
    Relation(
        "female form",
        ("The female form of the word {subject} is", "Not a {subject} but a woman or a girl: a"),
        ("{Answer} goes with {subject}.",),
        "What is the female form of the word {subject}?",
        _FAMILY,
    ),
    Relation(
        "player",
        ("{A_subject} plays the",),
        ("The {answer} is played by {a_subject}.",),
        "What does {a_subject} play?",
        _PLAYERS,
    ),
    Relation(
        "day after",
        ("The day after {subject} is", "After {subject} comes"),
        ("{Answer} comes after {subject}.",),
        "Which day comes after {subject}?",
        _next(DAYS),
    ),
    Relation(
        "day before",
        ("The day before {subject} is", "Before {subject} comes"),
        ("{Answer} comes before {subject}.",),
        "Which day comes before {subject}?",
        _previous(DAYS),
    ),
    Relation(
        "month after",
        ("The month after {subject} is", "The month that follows {subject} is"),
        ("The month of {answer} comes after {subject}.",),
        "Which month comes after {subject}?",
        _next(MONTHS),
    ),
    Relation(
        "month before",
        ("The month before {subject} is",),
        ("The month of {answer} comes before {subject}.",),
        "Which month comes before {subject}?",
        _previous(MONTHS),
    ),
    Relation(
        "letter after",
        ("The letter after {subject} is",),
        ("The letter {answer} comes after {subject}.",),
        "Which letter comes after {subject}?",
        _next(_LETTERS)[:-1],
    ),
    Relation(
        "sum",
        ("{Subject} is", "{Subject} equals"),
        ("The result of {subject} is {answer}.",),
        "What is {subject}?",
        _SUMS + _DIFFERENCES + _PRODUCTS,
    ),
)
