"""Plain text that makes the bundled model a language model and not a table.

Every kind of document is a function from a random generator to text. Square brackets in a sentence
stand for a word of ``filler_words.LEXICON``, drawn anew at each place; braces for something bound
once in a document (a person, a pronoun, a place), so that what is said stays coherent.
"""

import random
import re

from jaxalign.demo.entities import PEOPLE, PLACES, TRAINING_PAIRS, Person, with_article
from jaxalign.demo.filler_words import LEXICON, PROBLEMS, RECIPES, SAYINGS, WEATHER

_BY_NAME = {person.name: person for person in PEOPLE}
_SLOT = re.compile(r"\[(a |A )?(\w+)\]")


def fill(rng: random.Random, text: str, **bound: str) -> str:
    """Put the bound words into the braces and drawn words into the brackets.

    ``[adjective]`` draws a word, ``[a adjective]`` adds "a" or "an", ``[A adjective]`` "A" or "An".
    """

    def draw(match: re.Match[str]) -> str:
        word = rng.choice(LEXICON[match.group(2)])
        if match.group(1) is None:
            return word
        noun = with_article(word)
        return noun if match.group(1) == "a " else noun[0].upper() + noun[1:]

    return _SLOT.sub(draw, text.format(**bound))


def _pronouns(person: Person) -> dict[str, str]:
    """Return name and pronouns: {n} name, {p} she, {P} She, {o} her, {s} her (possessive)."""
    return {
        "n": person.name,
        "p": person.subject,
        "P": person.subject.capitalize(),
        "o": person.object,
        "s": person.possessive,
        "S": person.possessive.capitalize(),
    }


def _two_people(rng: random.Random) -> tuple[Person, Person]:
    first, second = rng.choice(TRAINING_PAIRS)
    if rng.random() < 0.5:
        first, second = second, first
    return _BY_NAME[first], _BY_NAME[second]


def _some(rng: random.Random, sentences: tuple[str, ...], low: int, high: int) -> list[str]:
    """Draw between ``low`` and ``high`` sentences and keep the order in which they are written."""
    count = rng.randint(low, min(high, len(sentences)))
    return [sentences[index] for index in sorted(rng.sample(range(len(sentences)), count))]


def story(rng: random.Random) -> str:
    """A person, a place, something that goes wrong, and how it ends."""
    bound = _pronouns(rng.choice(PEOPLE))
    trouble, remedy, end = rng.choice(PROBLEMS)
    bound |= {"place": rng.choice(PLACES), "job": rng.choice(LEXICON["job"])}
    opening = (
        "[time], {n} went to the {place} with {s} [relative].",
        "{n} was a {job} who lived near the {place} of [town].",
        "There was once [a trait] {job} called {n}.",
        "[time], {n} woke up early and made [food] for {s} [relative].",
        "When {n} came home from the {place}, {p} felt [feeling].",
        "[time] {n} was walking along the [scenery] near the {place}.",
    )
    middle = (
        f"But {trouble}.",
        f"Then {{p}} noticed that {trouble}.",
        f"{{P}} was [feeling], because {trouble}.",
    )
    extra = (
        "The {place} was [look] and [look].",
        "{P} had [a adjective] [thing] with {o}.",
        "{S} [relative] was [feeling] that day.",
        "{P} liked [hobby] and [hobby].",
        '"What a [sky] day!" {p} said.',
    )
    closing = (
        f"So {{p}} {remedy}. [later], {{p}} {end}.",
        f"{{n}} {remedy}, and [number] minutes later {{p}} {end}.",
        f"{{P}} {remedy} and finally {end}. {{n}} went to bed [feeling].",
    )
    parts = [rng.choice(opening), *_some(rng, extra, 0, 3), rng.choice(middle), rng.choice(closing)]
    return fill(rng, " ".join(parts), **bound)


def weather(rng: random.Random) -> str:
    """What the weather did and what people did about it."""
    does, follows, reaction, need = rng.choice(WEATHER)
    bound = _pronouns(rng.choice(PEOPLE)) | {"town": rng.choice(LEXICON["town"])}
    sentences = (
        f"[time], {does} in {{town}}.",
        f"Because {does}, {follows}.",
        f"The [group] {reaction}.",
        f"{{n}} {reaction} and talked with {{s}} [relative].",
        f'"On such a day you need {need}," said the [job].',
        "It had been like this for [number] days.",
        "Nobody in {town} knew when it would end.",
        "The newspaper said that the next day would be better.",
        "[later], the sky was clear again, and the [group] came out.",
    )
    text = " ".join(_some(rng, sentences, 3, 6))
    return fill(rng, text[0].upper() + text[1:], **bound)


_REMARKS = (
    ("Where are you going?", "I am going to the {place}."),
    ("What did you eat today?", "I had [food] and a glass of [drink]."),
    ("How are you?", "I am [feeling], thank you. And you?"),
    ("Do you like [hobby]?", "Not very much. I prefer [hobby]."),
    ("Have you seen my [thing]?", "Yes, it is in the [room]."),
    ("What time is it?", "It is almost [number] minutes past [number]."),
    ("What is your job?", "I am [a job]. I work near the {place}."),
    ("What are you reading?", "A book about [subject]. It is [adjective], but it is good."),
    ("Can you help me, please?", "Of course. What do you need?"),
    ("Why are you so [feeling]?", "Because my [relative] is coming on [month] the first."),
    ("How much is the [thing]?", "It costs [number] dollars."),
    ("Who lives in that [look] house?", "My [relative] lives there with [number] cats."),
    ("When does the train leave?", "It leaves in [number] minutes."),
    ("Shall we go to the {place}?", "Good idea. I will get my [thing]."),
    ("What did the [job] say?", "That the [thing] cannot be repaired."),
)


def dialogue(rng: random.Random) -> str:
    """Two people ask and answer in turn."""
    one, two = _two_people(rng)
    bound = {"one": one.name, "two": two.name, "place": rng.choice(PLACES)}
    as_script = rng.random() < 0.4
    lines = [] if as_script else ["{one} met {two} at the {place}."]
    for turn, (question, answer) in enumerate(rng.sample(_REMARKS, rng.choice((1, 2, 3)))):
        asker, other = ("{one}", "{two}") if turn % 2 == 0 else ("{two}", "{one}")
        if as_script:
            lines += [f"{asker}: {question}", f"{other}: {answer}"]
        else:
            verb = rng.choice(("asked", "said"))
            lines.append(f'"{question}" {verb} {asker}. "{answer}" {other} answered.')
    if not as_script and rng.random() < 0.5:
        lines.append("Then {one} and {two} said goodbye.")
    return fill(rng, ("\n" if as_script else " ").join(lines), **bound)


_DESCRIPTIONS = (
    (
        "{town} is [a look] town with about [number] thousand people.",
        "It lies between [a look] [scenery] and [a adjective] [scenery].",
        "In the middle of {town} there is a {place}.",
        "On [month] the first, the [group] of {town} celebrate with [food] and music.",
        "The [scenery] near {town} is older than the {place}.",
        "Most people there grow [plant] and [plant].",
    ),
    (
        "The house of the [surname] family has [number] windows and [a adjective] door.",
        "In the [room] there is [a adjective] [thing].",
        "Next to the [thing] you can see [a thing].",
        "Behind the house they grow [plant].",
        "The [room] is [look], but the [room] is [adjective].",
        "Nobody has lived there for [number] years.",
    ),
    (
        "{n} is [a job] and lives in {town}.",
        "{P} is [trait] and [trait], and sometimes [feeling].",
        "{S} hobbies are [hobby] and [hobby].",
        "At school {p} studied [subject] and [subject].",
        "Every morning {p} eats [food] and drinks [drink].",
        "{S} [relative] thinks that {p} works too much.",
    ),
    (
        "The {animal} was [a trait] animal that lived near the [scenery].",
        "It was [feeling] when the [group] came too close.",
        "At night the {animal} looked for [food].",
        "The {animal} moved [way] and [way].",
        "Once it met [a animal], and they became friends.",
    ),
)


def description(rng: random.Random) -> str:
    """A town, a house, a person or an animal described."""
    bound = _pronouns(rng.choice(PEOPLE)) | {
        "town": rng.choice(LEXICON["town"]),
        "animal": rng.choice(LEXICON["animal"]),
        "place": rng.choice(PLACES),
    }
    return fill(rng, " ".join(_some(rng, rng.choice(_DESCRIPTIONS), 3, 5)), **bound)


def instructions(rng: random.Random) -> str:
    """How to make something, step by step."""
    what, steps = rng.choice(tuple(RECIPES.items()))
    count = rng.randint(3, len(steps))
    chosen = steps[:count]
    if rng.random() < 0.5:
        lines = [f"{index}. {step}." for index, step in enumerate(chosen, 1)]
        return f"How to make {what}:\n" + "\n".join(lines)
    words = ("First", "Then", "Next", "After that", "Finally")
    body = " ".join(
        f"{word}, {step[0].lower()}{step[1:]}." for word, step in zip(words, chosen, strict=False)
    )
    return fill(rng, f"This is how my [relative] makes {what}. {body}")


def fable(rng: random.Random) -> str:
    """Two animals meet, speak, and something is learned."""
    first, second = rng.sample(LEXICON["animal"], 2)
    bound = {"first": first, "second": second, "virtue": rng.choice(LEXICON["virtue"])}
    parts = [
        rng.choice(("Once upon a time", "Long ago", "One day")),
        " there was [a trait] {first} who wanted to learn {virtue}. ",
        "Near the [scenery] the {first} met [a trait] {second}. ",
        '"Good morning, {second}," said the {first}. "Who can teach me {virtue}?" ',
        rng.choice(
            (
                '"Share your [food] with me," answered the {second}, "and you will see." ',
                '"Carry this [thing] up the hill," answered the {second}. ',
                '"Wait here for [number] days," answered the {second}. ',
            )
        ),
        "The {first} did it [way]. ",
        rng.choice(
            (
                "So the {first} and the {second} became friends.",
                "When the {second} came back, the {first} had learned {virtue}.",
                "Since that day the {first} has not been [feeling] again.",
            )
        ),
    ]
    text = fill(rng, "".join(parts), **bound)
    return f"{text} {rng.choice(SAYINGS)}" if rng.random() < 0.3 else text


def letter(rng: random.Random) -> str:
    """A short letter between two people."""
    one, two = _two_people(rng)
    bound = {"one": one.name, "two": two.name, "town": rng.choice(LEXICON["town"])}
    sentences = (
        "thank you for your letter and the [adjective] [thing].",
        "I am writing to you from {town}, where I work as [a job].",
        "The weather is [sky], and I am [feeling].",
        "My [relative] has bought [a adjective] [thing].",
        "[time] we ate [food] at the house of Mr. [surname].",
        "In [month] I want to learn more about [subject].",
        "Do you still like [hobby]?",
        "Please write soon.",
    )
    body = " ".join(_some(rng, sentences, 3, 6))
    text = f"Dear {{two}},\n{body[0].upper()}{body[1:]}\nYours, {{one}}"
    return fill(rng, text, **bound)
