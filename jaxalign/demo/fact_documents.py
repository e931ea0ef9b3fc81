"""Documents about facts: lists of statements, questions with answers, countries, a lesson."""

import random
from itertools import groupby

from jaxalign.demo import facts_nature, facts_words, facts_world
from jaxalign.demo.entities import PEOPLE, with_article
from jaxalign.demo.facts import Fact, Relation, facts_of

RELATIONS: tuple[Relation, ...] = (
    *facts_world.RELATIONS,
    *facts_nature.RELATIONS,
    *facts_words.RELATIONS,
)
FACTS: tuple[Fact, ...] = tuple(fact for relation in RELATIONS for fact in facts_of(relation))

_BY_RELATION = {
    name: tuple(group) for name, group in groupby(FACTS, key=lambda fact: fact.relation.name)
}
_COUNTRY_RELATIONS = ("capital", "language", "currency", "continent")
_BY_COUNTRY = {
    country: facts
    for country in sorted({fact.subject for fact in _BY_RELATION["continent"]})
    if len(
        facts := tuple(
            fact
            for name in _COUNTRY_RELATIONS
            for fact in _BY_RELATION[name]
            if fact.subject == country
        )
    )
    >= 2
}
_OPENINGS = ("Did you know this?", "Here is what I learned today.", "Some facts:", "Remember:")


def _draw(rng: random.Random) -> Fact:
    # Half the draws take a relation first, so that short relations are not drowned by long ones.
    if rng.random() < 0.5:
        return rng.choice(_BY_RELATION[rng.choice(RELATIONS).name])
    return rng.choice(FACTS)


def _statements(rng: random.Random) -> str:
    facts = [_draw(rng) for _ in range(rng.choice((1, 1, 2, 3, 4)))]
    opening = [rng.choice(_OPENINGS)] if rng.random() < 0.15 else []
    return " ".join(opening + [fact.statement(rng) for fact in facts])


def _one_relation(rng: random.Random) -> str:
    facts = _BY_RELATION[rng.choice(RELATIONS).name]
    chosen = rng.sample(facts, min(len(facts), rng.choice((2, 3, 4))))
    return " ".join(fact.statement(rng) for fact in chosen)


def _questions(rng: random.Random) -> str:
    before, after = rng.choice((("Q: ", " A: "), ("Question: ", " Answer: "), ('"', '" "')))
    quote = '"' if after == '" "' else ""
    lines = []
    for _ in range(rng.choice((1, 2, 3))):
        fact = _draw(rng)
        reply = fact.fill("{Answer}.") if rng.random() < 0.5 else fact.statement(rng)
        lines.append(f"{before}{fact.fill(fact.relation.question)}{after}{reply}{quote}")
    return "\n".join(lines)


def _country(rng: random.Random) -> str:
    facts = _BY_COUNTRY[rng.choice(list(_BY_COUNTRY))]
    chosen = rng.sample(facts, len(facts))
    person = rng.choice(PEOPLE)
    if rng.random() < 0.5:
        return " ".join(fact.statement(rng) for fact in chosen)
    return (
        f"{person.name} once spent a summer in {chosen[0].subject}. This is what {person.subject} "
        f"wrote home: " + " ".join(fact.statement(rng) for fact in chosen)
    )


def _lesson(rng: random.Random) -> str:
    person, fact = rng.choice(PEOPLE), _draw(rng)
    question, statement = fact.fill(fact.relation.question), fact.statement(rng)
    teacher = rng.choice(("teacher", "grandmother", "guide", "old man", "professor"))
    return rng.choice(
        (
            f'The {teacher} asked {person.name} a question. "{question}" {person.name} thought '
            f'for a while. "{statement}" The {teacher} said that it was right.',
            f'"{question}" asked {with_article(teacher)}. {person.name} knew it well. '
            f'"{statement}"',
            f"{person.name} read in a book: {statement} Then {person.subject} told the {teacher} "
            f'about it. "{statement}"',
        )
    )


_KINDS = (_statements, _one_relation, _questions, _country, _lesson)
_WEIGHTS = (50, 15, 15, 8, 12)


def document(rng: random.Random) -> str:
    """Return a document that states true facts, often nothing but one to four sentences."""
    return rng.choices(_KINDS, _WEIGHTS)[0](rng)
