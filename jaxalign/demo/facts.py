"""The facts that the bundled model is taught: true relations, each in several phrasings.

A relation is a list of (subject, answer) pairs and of sentences. Sentences that end with the answer
are cloze sentences: without the answer, they are the factual prompts of ``prompts/shipped.json``.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """A kind of fact.

    Attributes:
      name: what relates subject and answer, for example "capital".
      cloze: beginnings of sentences that the answer completes.
      other: sentences, with full stop, that hold the same fact in another order.
      question: asks for the answer; the corpus uses it in dialogues.
      pairs: subject and answer of every fact.

    Sentences may use {subject}, {answer}, the same with a capital letter ({Subject}, {Answer}), and
    the same with an indefinite article ({a_subject}, {A_subject}, {a_answer}, {A_answer}).
    """

    name: str
    cloze: tuple[str, ...]
    other: tuple[str, ...]
    question: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Fact:
    """One pair of a relation."""

    relation: Relation
    subject: str
    answer: str

    def fill(self, sentence: str) -> str:
        """Put subject and answer into a sentence."""
        return sentence.format(
            subject=self.subject,
            Subject=_capital(self.subject),
            a_subject=_indefinite(self.subject),
            A_subject=_capital(_indefinite(self.subject)),
            answer=self.answer,
            Answer=_capital(self.answer),
            a_answer=_indefinite(self.answer),
            A_answer=_capital(_indefinite(self.answer)),
        )

    def clozes(self) -> tuple[tuple[str, str], ...]:
        """Return (prompt, target) of every cloze sentence; the target begins with a space."""
        return tuple((self.fill(prompt), f" {self.answer}") for prompt in self.relation.cloze)

    def statement(self, rng: random.Random) -> str:
        """Return one sentence that states the fact, in a phrasing drawn at random."""
        phrasings = [f"{sentence} {{answer}}." for sentence in self.relation.cloze]
        return self.fill(rng.choice(phrasings * 2 + list(self.relation.other)))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def _indefinite(noun: str) -> str:
    # "a unicorn" and "an hour" go by sound; the table avoids such words except these.
    starts_with_vowel = noun[0].lower() in "aeiou" and not noun.startswith(("uni", "Eu", "eu"))
    return f"{'an' if starts_with_vowel else 'a'} {noun}"


def pairs(text: str) -> tuple[tuple[str, str], ...]:
    """Read "France=Paris, Germany=Berlin" into pairs of subject and answer."""
    items = (item.strip() for item in " ".join(text.split()).split(","))
    return tuple((subject, answer) for subject, answer in (item.split("=") for item in items))


def facts_of(relation: Relation) -> Iterator[Fact]:
    """Yield every fact of a relation."""
    for subject, answer in relation.pairs:
        yield Fact(relation, subject, answer)
