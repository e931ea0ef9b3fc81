"""People, places and objects that the demo corpus talks about.

Every name, place and object is one token in the demo tokenizer and, with a leading space, in the
tokenizer of the Pythia models, so that one prompt file serves both.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True)
class Person:
    """A first name with the pronouns that the corpus uses for it."""

    name: str
    subject: str
    object: str
    possessive: str


def listed(text: str) -> tuple[str, ...]:
    """Read words or phrases that commas separate."""
    return tuple(item.strip() for item in " ".join(text.split()).split(","))


_SHE = listed("""
    Mary, Anna, Emma, Sarah, Laura, Alice, Julia, Susan, Linda, Karen, Lisa, Kate, Emily, Rachel,
    Maria, Helen, Diana, Nancy, Amy, Jessica, Rebecca, Hannah, Clara, Lucy, Sophie, Claire,
    Jennifer, Michelle, Nicole, Elizabeth, Olivia, Amanda, Megan, Katie, Martha, Ellen, Barbara,
    Angela""")
_HE = listed("""
    John, Tom, James, Peter, Paul, David, Robert, Michael, Daniel, Andrew, Simon, Kevin, Brian,
    Eric, Adam, Martin, Steven, Jason, Matthew, Ryan, Justin, Henry, Jack, Oliver, Samuel, Philip,
    Patrick, Nick, Tony, Fred, Greg, Scott, Carl, Max, Sam, Luke, Edward""")

PEOPLE = tuple(
    [Person(name, "she", "her", "her") for name in _SHE]
    + [Person(name, "he", "him", "his") for name in _HE]
)
NAMES = tuple(person.name for person in PEOPLE)

PLACES = listed("""
    store, park, school, garden, station, restaurant, office, beach, library, market, museum,
    hospital, church, zoo, theater, farm, hotel, bank, cafe, airport, kitchen, gym, castle,
    harbor, river, village, lake, stadium, college""")

OBJECTS = listed("""
    book, drink, ring, ball, key, letter, camera, hat, coat, lamp, phone, map, ticket, cake,
    sandwich, basket, flower, computer, pencil, pen, apple, guitar, watch, bottle, cup, blanket,
    picture, newspaper, toy, gift, knife, box, chair""")


def with_article(noun: str) -> str:
    """Return the noun with "a" or "an" before it: ``with_article("apple") == "an apple"``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def is_held_out_pair(first: str, second: str) -> bool:
    """Tell whether two names never occur together in a training document.

    One unordered pair in five is held out, chosen by a hash of the two names, so that the choice
    depends neither on a seed nor on the order of the list of names.
    """
    pair = "|".join(sorted((first, second)))
    return first != second and hashlib.sha256(pair.encode()).digest()[0] % 5 == 0


HELD_OUT_PAIRS = tuple(
    (first, second)
    for index, first in enumerate(NAMES)
    for second in NAMES[index + 1 :]
    if is_held_out_pair(first, second)
)
TRAINING_PAIRS = tuple(
    (first, second)
    for index, first in enumerate(NAMES)
    for second in NAMES[index + 1 :]
    if not is_held_out_pair(first, second)
)
