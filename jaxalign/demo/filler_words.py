"""Word lists of the filler text: what people do, see, feel, eat and say."""

from jaxalign.demo.entities import listed

LEXICON: dict[str, tuple[str, ...]] = {
    "adjective": listed("""
        old, new, small, large, quiet, bright, dark, heavy, light, strange, beautiful, broken,
        simple, expensive, cheap, famous, empty, narrow, wide, green, red, blue, yellow, white,
        black, brown, gray, wooden, round, dusty, clean, soft, warm, cold, tall, short, thick,
        thin, pretty"""),
    "look": listed("""
        old, quiet, beautiful, empty, famous, crowded, noisy, dark, large, peaceful, modern,
        clean, busy, lovely, dusty, cold, strange"""),
    "trait": listed("""
        kind, brave, clever, lazy, friendly, honest, patient, shy, polite, cheerful, stubborn,
        wise, young, old, hungry, proud, quiet, funny"""),
    "sky": listed("""
        warm, cold, wet, mild, windy, sunny, terrible, wonderful, cloudy"""),
    "feeling": listed("""
        happy, sad, tired, angry, proud, nervous, surprised, hungry, calm, worried, excited,
        lonely, curious, afraid, bored, grateful"""),
    "time": listed("""
        In the morning, In the afternoon, In the evening, Late at night, After breakfast, Before
        dinner, One day, The next day, On Monday, On Tuesday, On Wednesday, On Thursday, On
        Friday, On Saturday, On Sunday, Last week, Last year, A long time ago, At noon, Early in
        the spring, One summer, That winter"""),
    "later": listed("""
        Later, Soon, After an hour, A few days later, In the end, At last, After that, Then, A
        little later, Before long, The following week"""),
    "animal": listed("""
        fox, dog, cat, bear, rabbit, mouse, wolf, bird, horse, duck, frog, owl, lion, goat, sheep,
        cow, turtle, squirrel, crow, snake"""),
    "food": listed("""
        bread, soup, cheese, rice, fish, chicken, salad, pasta, cake, fruit, potatoes, beans,
        eggs, honey, pancakes, tomatoes, nuts, mushrooms"""),
    "drink": listed("""
        tea, coffee, milk, water, juice, lemonade, hot chocolate"""),
    "job": listed("""
        teacher, doctor, farmer, baker, sailor, painter, lawyer, nurse, cook, driver, writer,
        student, soldier, gardener, singer, engineer, carpenter, librarian, pilot, tailor,
        shopkeeper, musician, clerk, judge"""),
    "relative": listed("""
        mother, father, sister, brother, aunt, uncle, grandmother, grandfather, cousin, neighbor,
        best friend, son, daughter"""),
    "scenery": listed("""
        forest, valley, hill, field, coast, island, desert, road, meadow, cliff, bay, pond, path,
        square, street, tower, wall, gate, mill, ruin"""),
    "room": listed("""
        kitchen, bedroom, attic, cellar, hall, bathroom, study, garage"""),
    "thing": listed("""
        table, mirror, candle, carpet, clock, window, door, ladder, bucket, rope, piano, suitcase,
        wallet, spoon, pot, shelf, stone, coin, boat, wheel, painting, diary, telescope, kite,
        drawer, bench, bell, sword, radio, bicycle, train, wagon, statue, crown, shirt, glove,
        pillow"""),
    "plant": listed("""
        roses, tulips, beans, carrots, apple trees, herbs, potatoes, sunflowers, grapes, onions,
        pumpkins, lilies"""),
    "town": listed("""
        Ashford, Millbrook, Stonebridge, Oakdale, Riverton, Greenfield, Westport, Northgate,
        Fairview, Lakewood, Redhill, Silverton, Elmwood, Kingsbury"""),
    "surname": listed("""
        Hill, Baker, Wood, Clark, Walker, Green, Stone, Fisher, Cook, Miller, Young, King, Brooks,
        Carter, Turner, Mason, Hunter, Porter"""),
    "month": listed("""
        January, February, March, April, May, June, July, August, September, October, November,
        December"""),
    "number": listed("""
        two, three, four, five, six, seven, eight, nine, ten, twelve, fifteen, twenty, thirty,
        forty, fifty, a hundred"""),
    "subject": listed("""
        history, music, mathematics, geography, art, biology, chemistry, poetry, physics, law,
        medicine, philosophy"""),
    "hobby": listed("""
        reading, swimming, painting, fishing, dancing, singing, running, cooking, hiking, sewing,
        gardening, writing letters, playing chess, collecting stamps, watching birds, riding a
        bicycle, baking bread, climbing trees"""),
    "virtue": listed("""
        patience, courage, kindness, honesty, hard work, friendship, wisdom"""),
    "group": listed("""
        children, visitors, workers, students, farmers, travelers, neighbors"""),
    "way": listed("""
        slowly, quickly, quietly, carefully, happily, gently, suddenly, loudly"""),
}

# What it does, what follows, what people do, what one needs.
WEATHER: tuple[tuple[str, str, str, str], ...] = (
    ("it rained", "the streets were wet", "stayed inside", "an umbrella"),
    ("it snowed", "the roofs were white", "built a snowman", "warm boots"),
    ("the sun was shining", "the air was warm", "sat in the shade", "a straw hat"),
    ("the wind was strong", "leaves flew through the air", "closed the windows", "a thick coat"),
    ("there was a storm", "the lights went out", "lit some candles", "a flashlight"),
    ("it was foggy", "nobody could see the hills", "drove slowly", "a bright light"),
    ("it was freezing", "the lake was covered with ice", "made a fire", "gloves and a scarf"),
    ("it was very hot", "the grass was dry", "drank a lot of water", "a cold drink"),
)

# What goes wrong, what the person does about it, how it ends; {p} and {s} are pronouns.
PROBLEMS: tuple[tuple[str, str, str], ...] = (
    ("{p} had lost {s} keys", "looked under every chair", "found them in {s} own pocket"),
    ("{p} had missed the train", "waited at the station", "took the next one"),
    ("{p} had forgotten the way", "asked a kind woman", "turned left at the church"),
    ("{s} bicycle was broken", "bought a new wheel", "rode home happily"),
    ("{p} could not sleep", "drank a glass of warm milk", "slept until nine"),
    ("{p} had no money left", "sold an old painting", "paid for everything"),
    ("the door was locked", "climbed through the window", "opened it from the inside"),
    ("{s} dog had run away", "searched the whole park", "found it asleep under a tree"),
    ("{s} shoes were too small", "went to the shoemaker", "walked without pain"),
    ("the soup was too salty", "added a potato and some water", "had a very good dinner"),
    ("{p} had hurt {s} knee", "went to see a doctor", "was able to walk again"),
    ("{p} could not find {s} glasses", "searched the whole house", "found them on {s} own nose"),
    ("the lamp did not work", "changed the bulb", "read until midnight"),
    ("{s} car would not start", "called a mechanic", "arrived one hour late"),
    ("{p} had broken a window", "told the owner the truth", "was forgiven"),
    ("the milk had gone bad", "walked to the store", "came back with a fresh bottle"),
)

SAYINGS: tuple[str, ...] = (
    "The early bird catches the worm.",
    "Practice makes perfect.",
    "Actions speak louder than words.",
    "Better late than never.",
    "All that glitters is not gold.",
    "Many hands make light work.",
    "Where there is smoke, there is fire.",
    "A friend in need is a friend indeed.",
    "You cannot judge a book by its cover.",
    "Rome was not built in a day.",
)

RECIPES: dict[str, tuple[str, ...]] = {
    "a cup of tea": listed("""
        Boil some water, Put the tea in a cup, Pour the water over it, Wait for four minutes, Add
        a little sugar"""),
    "vegetable soup": listed("""
        Wash the carrots and the potatoes, Cut them into small pieces, Cook them in a large pot,
        Add salt and pepper, Serve it hot"""),
    "pancakes": listed("""
        Mix flour with eggs and milk, Add a little salt, Heat some butter in a pan,
        Bake the pancakes on both sides, Eat them with honey"""),
    "a salad": listed("""
        Wash the tomatoes, Cut the onion, Put everything in a bowl, Add oil and salt,
        Mix it well"""),
    "a sandwich": listed("""
        Cut two slices of bread, Put butter on them, Add cheese and a tomato, Close the sandwich,
        Cut it in half"""),
    "a paper boat": listed("""
        Take a sheet of paper, Fold it in half, Fold the corners down, Turn up the edges, Pull the
        sides apart"""),
    "a small garden": listed("""
        Choose a sunny place, Dig the ground, Put the seeds into the earth, Water them every day,
        Wait for a few weeks"""),
    "a fire": listed("""
        Collect dry wood, Put some paper under it, Light the paper with a match, Add larger pieces
        of wood, Keep a bucket of water near"""),
}
