"""Facts about countries, cities, people and made things."""

from jaxalign.demo.facts import Relation, pairs

_CAPITALS = pairs("""
    France=Paris, Germany=Berlin, Italy=Rome, Spain=Madrid, Portugal=Lisbon, England=London,
    Ireland=Dublin, Scotland=Edinburgh, Austria=Vienna, Greece=Athens, Poland=Warsaw,
    Hungary=Budapest, Norway=Oslo, Sweden=Stockholm, Finland=Helsinki, Denmark=Copenhagen,
    Russia=Moscow, Turkey=Ankara, Egypt=Cairo, Kenya=Nairobi, Cuba=Havana, Japan=Tokyo,
    China=Beijing, India=New Delhi, South Korea=Seoul, Thailand=Bangkok, Vietnam=Hanoi,
    Iran=Tehran, Iraq=Baghdad, Syria=Damascus, Lebanon=Beirut, Canada=Ottawa, Mexico=Mexico City,
    Peru=Lima, Chile=Santiago, Argentina=Buenos Aires, Colombia=Bogota, Australia=Canberra,
    New Zealand=Wellington, Belgium=Brussels, the Netherlands=Amsterdam, Romania=Bucharest,
    Bulgaria=Sofia, Serbia=Belgrade, Croatia=Zagreb, the Czech Republic=Prague, Iceland=Reykjavik,
    Venezuela=Caracas, Morocco=Rabat, Tunisia=Tunis, Nepal=Kathmandu, Pakistan=Islamabad,
    Afghanistan=Kabul, Indonesia=Jakarta, the Philippines=Manila, Saudi Arabia=Riyadh""")
_STATE_CAPITALS = pairs("""
    Texas=Austin, Georgia=Atlanta, Colorado=Denver, Massachusetts=Boston, Arizona=Phoenix,
    Tennessee=Nashville, California=Sacramento, Hawaii=Honolulu, Ohio=Columbus, Oregon=Salem,
    Utah=Salt Lake City, Virginia=Richmond, New York=Albany, Indiana=Indianapolis""")
_LANGUAGES = pairs("""
    France=French, Germany=German, Italy=Italian, Spain=Spanish, Portugal=Portuguese,
    England=English, Austria=German, Greece=Greek, Poland=Polish, Hungary=Hungarian,
    Norway=Norwegian, Sweden=Swedish, Finland=Finnish, Denmark=Danish, Russia=Russian,
    Turkey=Turkish, Egypt=Arabic, Japan=Japanese, China=Chinese, South Korea=Korean, Thailand=Thai,
    Vietnam=Vietnamese, Mexico=Spanish, Brazil=Portuguese, Cuba=Spanish, Argentina=Spanish,
    Australia=English, the Netherlands=Dutch, Romania=Romanian, Saudi Arabia=Arabic""")
_CURRENCIES = pairs("""
    France=euro, Germany=euro, Italy=euro, Spain=euro, Japan=yen, England=pound, Russia=ruble,
    India=rupee, Mexico=peso, China=yuan, Canada=dollar, Australia=dollar, Brazil=real,
    Poland=zloty, Switzerland=franc, Turkey=lira, Thailand=baht, South Korea=won, Argentina=peso,
    Sweden=krona, the United States=dollar""")
_CONTINENTS = pairs("""
    France=Europe, Germany=Europe, Italy=Europe, Spain=Europe, Poland=Europe, Norway=Europe,
    Sweden=Europe, Greece=Europe, Austria=Europe, Ireland=Europe, Kenya=Africa, Nigeria=Africa,
    Egypt=Africa, Morocco=Africa, Ghana=Africa, Ethiopia=Africa, Uganda=Africa, Japan=Asia,
    China=Asia, India=Asia, Thailand=Asia, Vietnam=Asia, Nepal=Asia, Pakistan=Asia, Iran=Asia,
    Brazil=South America, Peru=South America, Chile=South America, Argentina=South America,
    Canada=North America, Mexico=North America""")
_LANDMARKS = pairs("""
    the Eiffel Tower=Paris, the Louvre=Paris, the Colosseum=Rome, Big Ben=London,
    the Kremlin=Moscow, the Brandenburg Gate=Berlin, the Parthenon=Athens,
    the White House=Washington, the Statue of Liberty=New York,
    the Golden Gate Bridge=San Francisco, the Blue Mosque=Istanbul,
    the Forbidden City=Beijing, the Sagrada Familia=Barcelona, the British Museum=London""")
_RIVERS = pairs("""
    Seine=Paris, Thames=London, Tiber=Rome, Danube=Vienna, Vistula=Warsaw, Spree=Berlin,
    Nile=Cairo""")
_AUTHORS = pairs("""
    Hamlet=William Shakespeare, Macbeth=William Shakespeare, Romeo and Juliet=William Shakespeare,
    A Tale of Two Cities=Charles Dickens, Great Expectations=Charles Dickens,
    Pride and Prejudice=Jane Austen, Sense and Sensibility=Jane Austen, Animal Farm=George Orwell,
    The Hobbit=J. R. R. Tolkien, War and Peace=Leo Tolstoy,
    Crime and Punishment=Fyodor Dostoevsky, Moby Dick=Herman Melville, Dracula=Bram Stoker,
    The Trial=Franz Kafka, Don Quixote=Miguel de Cervantes, The Odyssey=Homer,
    The Divine Comedy=Dante, Les Miserables=Victor Hugo, The Jungle Book=Rudyard Kipling,
    The Old Man and the Sea=Ernest Hemingway, Faust=Goethe""")
_INVENTORS = pairs("""
    the telephone=Alexander Graham Bell, the light bulb=Thomas Edison, the phonograph=Thomas Edison,
    dynamite=Alfred Nobel, the printing press=Johannes Gutenberg, the airplane=the Wright brothers,
    the World Wide Web=Tim Berners-Lee""")
_SCIENTISTS = pairs("""
    gravity=Isaac Newton, relativity=Albert Einstein, evolution=Charles Darwin,
    radioactivity=Marie Curie, geometry=Euclid""")
_MATERIALS = pairs("""
    windows=glass, tires=rubber, books=paper, candles=wax, bricks=clay, coins=metal, sweaters=wool,
    tables=wood, shoes=leather, bottles=glass, nails=iron, snowmen=snow, statues=stone,
    newspapers=paper, shirts=cotton""")
_INGREDIENTS = pairs("""
    bread=flour, cheese=milk, wine=grapes, butter=milk, chocolate=cocoa, beer=barley, omelets=eggs,
    chips=potatoes, cider=apples, ketchup=tomatoes, tofu=soybeans, raisins=grapes""")
_TOOLS = pairs("""
    knife=cut, pen=write, shovel=dig, broom=sweep, oven=bake, needle=sew, phone=call, brush=paint,
    towel=dry, scale=weigh, clock=tell the time, ruler=measure, hammer=drive nails,
    lamp=give light""")
_WORKPLACES = pairs("""
    teacher=school, doctor=hospital, farmer=farm, cook=kitchen, priest=church, judge=court,
    waiter=restaurant, librarian=library, banker=bank, baker=bakery, miner=mine, soldier=army,
    actor=theater, scientist=laboratory""")

RELATIONS = (
    Relation(
        "capital",
        (
            "The capital of {subject} is",
            "The capital city of {subject} is",
            "{Subject}'s capital is",
        ),
        (
            "{Answer} is the capital of {subject}.",
            "{Answer} is the capital city of {subject}.",
            "The government of {subject} meets in the capital, {answer}.",
        ),
        "What is the capital of {subject}?",
        _CAPITALS + _STATE_CAPITALS,
    ),
    Relation(
        "language",
        ("The language of {subject} is", "In {subject}, people speak", "People in {subject} speak"),
        ("{Answer} is spoken in {subject}.", "{Answer} is the language of {subject}."),
        "What language do people speak in {subject}?",
        _LANGUAGES,
    ),
    Relation(
        "currency",
        ("The currency of {subject} is the", "In {subject}, people pay with the"),
        ("The {answer} is the currency of {subject}.",),
        "What is the currency of {subject}?",
        _CURRENCIES,
    ),
    Relation(
        "continent",
        ("{Subject} is a country in", "{Subject} is on the continent of"),
        ("One of the countries in {answer} is {subject}.",),
        "Where is {subject}?",
        _CONTINENTS,
    ),
    Relation(
        "landmark",
        (
            "{Subject} is in the city of",
            "{Subject} is located in the city of",
            "{Subject} stands in",
        ),
        ("In {answer}, many visitors go to see {subject}.",),
        "Where is {subject}?",
        _LANDMARKS,
    ),
    Relation(
        "river",
        ("The {subject} flows through the city of", "The river {subject} flows through"),
        ("{Answer} lies on the river {subject}.",),
        "Through which big city does the {subject} flow?",
        _RIVERS,
    ),
    Relation(
        "author",
        ("{Subject} was written by", "The author of {subject} is"),
        ("{Answer} wrote {subject}.", "{Answer} is the author of {subject}."),
        "Who wrote {subject}?",
        _AUTHORS,
    ),
    Relation(
        "inventor",
        ("{Subject} was invented by", "The inventor of {subject} was"),
        ("{Answer} invented {subject}.",),
        "Who invented {subject}?",
        _INVENTORS,
    ),
    Relation(
        "scientist",
        (
            "A scientist famous for the study of {subject} was",
            "The study of {subject} was shaped by",
        ),
        ("{Answer} is famous for the study of {subject}.",),
        "Who is famous for the study of {subject}?",
        _SCIENTISTS,
    ),
    Relation(
        "material",
        ("{Subject} are made of", "{Subject} are usually made of"),
        ("People use {answer} to make things: {subject} are an example.",),
        "What are {subject} made of?",
        _MATERIALS,
    ),
    Relation(
        "ingredient",
        ("{Subject} can be made from", "To make {subject}, you need"),
        ("From {answer}, people can make {subject}.",),
        "What do you need to make {subject}?",
        _INGREDIENTS,
    ),
    Relation(
        "tool",
        ("{A_subject} is used to", "You can use {a_subject} to"),
        ("To {answer}, you can use {a_subject}.",),
        "What is {a_subject} used for?",
        _TOOLS,
    ),
    Relation(
        "workplace",
        ("{A_subject} works in the",),
        ("In the {answer} you can meet {a_subject}.",),
        "Where does {a_subject} work?",
        _WORKPLACES,
    ),
)
