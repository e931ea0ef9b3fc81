"""Facts about animals, plants, the body, the sky and matter."""

from jaxalign.demo.facts import Relation, pairs

_YOUNG = pairs("""
    dog=puppy, cat=kitten, cow=calf, sheep=lamb, horse=foal, goat=kid, duck=duckling, goose=gosling,
    bear=cub, lion=cub, deer=fawn, frog=tadpole, swan=cygnet, pig=piglet, hen=chick,
    kangaroo=joey, owl=owlet, butterfly=caterpillar""")
_SOUNDS = pairs("""
    dog=woof, cat=meow, cow=moo, sheep=baa, duck=quack, pig=oink, horse=neigh, mouse=squeak,
    lion=roar, bee=buzz, crow=caw, frog=croak, snake=hiss, wolf=howl""")
_HOMES = pairs("""
    bee=hive, bird=nest, bear=cave, spider=web, horse=stable, fish=water, rabbit=burrow,
    lion=savanna, camel=desert, monkey=jungle, whale=ocean, cow=barn""")
_GROUPS = pairs("""
    wolves=pack, sheep=flock, fish=school, bees=swarm, lions=pride, cows=herd, birds=flock,
    ants=colony, whales=pod, elephants=herd""")
_FOODS = pairs("""
    cows=grass, rabbits=carrots, monkeys=bananas, pandas=bamboo, squirrels=nuts, bees=nectar,
    horses=hay, lions=meat, frogs=flies, mice=cheese, sharks=fish, koalas=leaves""")
_LEGS = pairs("""
    spider=eight, dog=four, cat=four, insect=six, bird=two, horse=four, ant=six, cow=four,
    crab=ten, hen=two""")
_KINDS = pairs("""
    rose=flower, tulip=flower, daisy=flower, lily=flower, oak=tree, pine=tree, willow=tree,
    apple=fruit, banana=fruit, pear=fruit, peach=fruit, carrot=vegetable, potato=vegetable,
    onion=vegetable, eagle=bird, sparrow=bird, owl=bird, robin=bird, salmon=fish, trout=fish,
    shark=fish, ant=insect, bee=insect, fly=insect, hammer=tool, saw=tool, violin=instrument,
    piano=instrument, drum=instrument, trumpet=instrument, sedan=car, whale=mammal, lizard=reptile,
    snake=reptile, sofa=piece of furniture, diamond=stone, ruby=stone""")
_COLORS = pairs("""
    the sky=blue, grass=green, snow=white, blood=red, coal=black, a lemon=yellow, a banana=yellow,
    a tomato=red, milk=white, the sea=blue, a carrot=orange, a frog=green, an elephant=gray,
    chocolate=brown, a ruby=red, an emerald=green, a sunflower=yellow, a raven=black,
    a strawberry=red, a stop sign=red""")
_SYMBOLS = pairs("""
    gold=Au, silver=Ag, iron=Fe, copper=Cu, lead=Pb, oxygen=O, hydrogen=H, carbon=C, nitrogen=N,
    sodium=Na, potassium=K, helium=He, calcium=Ca, tin=Sn, zinc=Zn, neon=Ne, sulfur=S, iodine=I""")
_PLANETS = pairs("""
    the largest planet=Jupiter, the planet closest to the Sun=Mercury, the red planet=Mars,
    the planet with the brightest rings=Saturn, the planet we live on=Earth,
    the hottest planet=Venus, the planet farthest from the Sun=Neptune,
    the planet between Saturn and Neptune=Uranus""")
_MOONS = pairs("""
    Titan=Saturn, Europa=Jupiter, Ganymede=Jupiter, Callisto=Jupiter, Io=Jupiter, Phobos=Mars,
    Deimos=Mars, Triton=Neptune, Titania=Uranus, Oberon=Uranus, Enceladus=Saturn""")
_SENSES = pairs("""
    see=eyes, hear=ears, smell=nose, taste=tongue, bite=teeth, walk=feet, think=brain,
    breathe=lungs, clap=hands, kick=legs, point=finger, kiss=lips""")
_WEAR = pairs("""
    shoe=foot, hat=head, glove=hand, ring=finger, watch=wrist, scarf=neck, sock=foot, belt=waist,
    helmet=head, mitten=hand""")
_STATES = pairs("""
    ice=water, steam=water, ash=wood, snow=water, sand=stone, smoke=fire""")

RELATIONS = (
    Relation(
        "young",
        ("A young {subject} is called a", "A baby {subject} is called a"),
        ("A {answer} is a young {subject}.", "When a {answer} grows up, it is a {subject}."),
        "What is a young {subject} called?",
        _YOUNG,
    ),
    Relation(
        "sound",
        ("The sound of a {subject} is the", "The {subject} says"),
        ("With a loud {answer}, the {subject} woke up.", "{Answer} is the sound of a {subject}."),
        "What does the {subject} say?",
        _SOUNDS,
    ),
    Relation(
        "home",
        ("The home of the {subject} is the", "{A_subject} lives in the"),
        ("In the {answer} lives the {subject}.",),
        "Where does {a_subject} live?",
        _HOMES,
    ),
    Relation(
        "group",
        ("A group of {subject} is called a", "Many {subject} together are called a"),
        ("A {answer} is a group of {subject}.",),
        "What is a group of {subject} called?",
        _GROUPS,
    ),
    Relation(
        "food",
        ("{Subject} like to eat", "{Subject} mostly eat", "{Subject} eat"),
        ("{Answer} is what {subject} like to eat.",),
        "What do {subject} eat?",
        _FOODS,
    ),
    Relation(
        "legs",
        ("The number of legs of {a_subject} is",),
        ("{A_subject} has {answer} legs.",),
        "How many legs does {a_subject} have?",
        _LEGS,
    ),
    Relation(
        "kind",
        ("{A_subject} is a kind of", "{A_subject} is a type of"),
        ("One kind of {answer} is the {subject}.", "The {subject} is {a_answer}."),
        "What kind of thing is {a_subject}?",
        _KINDS,
    ),
    Relation(
        "color",
        ("The color of {subject} is", "The usual color of {subject} is"),
        ("The {answer} color of {subject} is easy to see.",),
        "What is the color of {subject}?",
        _COLORS,
    ),
    Relation(
        "symbol",
        ("The chemical symbol for {subject} is", "The symbol for {subject} is"),
        ("{Answer} is the chemical symbol for {subject}.",),
        "What is the chemical symbol for {subject}?",
        _SYMBOLS,
    ),
    Relation(
        "planet",
        ("{Subject} is called", "{Subject} is"),
        ("{Answer} is {subject}.",),
        "What is {subject}?",
        _PLANETS,
    ),
    Relation(
        "moon",
        ("{Subject} is a moon of", "{Subject} is one of the moons of"),
        ("{Answer} has a moon called {subject}.",),
        "Which planet has {subject} as a moon?",
        _MOONS,
    ),
    Relation(
        "sense",
        ("We {subject} with our", "People {subject} with their"),
        ("Our {answer} help us to {subject}.",),
        "What do you need to {subject}?",
        _SENSES,
    ),
    Relation(
        "wear",
        ("{A_subject} is worn on the", "You wear {a_subject} on your"),
        ("On the {answer} you can wear {a_subject}.",),
        "Where do you wear {a_subject}?",
        _WEAR,
    ),
    Relation(
        "state",
        ("{Subject} comes from", "{Subject} is made by nature from"),
        ("{Answer} can turn into {subject}.",),
        "What does {subject} come from?",
        _STATES,
    ),
)
