"""Kinds of words: what may fill a slot of a clause, so that nothing absurd is said.

A kind is a class of the lexicon, or one of the selections below. A selection reads from left to
right: `class` takes all its words, `class[mark]` those with a mark, `+word` takes one word,
`-word` leaves one out, `!mass` leaves out what has no plural. The words of a class have Zipf
weights in the order of the kind; the i-th class of a kind has them divided by i.
"""

from __future__ import annotations

from llm_town.errors import DataError
from llm_town.lexicon import Entry, Table, zipf

PARTS_OF_CLOTHES = "-collar -sleeve -pocket -button -zip -cuff -buckle -shoelace -hood -wristband"
NOT_PORTABLE = "-swing -seesaw -trampoline -bill -document"
PAIRS = (
    "-shoe -glove -sock -boot -slipper -sandal -mitten -stocking -trainer -clog -loafer -moccasin "
    "-earmuff -brogue -galosh"
)
SPICES = (
    "-salt -sugar -butter -flour -garlic -ginger -pea -bean -lentil -raisin -noodle -mustard "
    "-ketchup -vinegar -gravy -sauce -syrup -cinnamon -cream -pepper -chutney -nut"
)
BAKED = (
    "+bread +cake +pie +biscuit +pizza +bun +muffin +scone +loaf +pastry +tart +croissant +bagel "
    "+baguette +crumpet +quiche +meringue +brownie +flapjack +gingerbread +shortbread +lasagne "
    "+pretzel +pudding +cracker +waffle +pancake +doughnut"
)
FRESH = (
    "+potato +tomato +carrot +chicken +meat +onion +sausage +ham +beef +bacon +mushroom +cabbage "
    "+cucumber +pumpkin +corn +pork +salmon +tuna +spinach +turnip +radish +leek +celery +broccoli "
    "+cauliflower +beetroot +aubergine +courgette +avocado +steak +meatball +tofu +prawn +sardine "
    "+parsnip +artichoke +asparagus +pear +plum +peach +chestnut"
)
WATER_AND_INSECTS = (
    "-fish -goldfish -bee -butterfly -spider -snail -ant -ladybird -beetle -caterpillar -dragonfly "
    "-grasshopper -cricket -moth -wasp -worm -slug -crab -lobster -dolphin -whale -shark -octopus "
    "-starfish -jellyfish -trout -eel -firefly -mosquito -turtle -snake -newt"
)
ROADS = (
    "-village -suburb -corner -road -lane -avenue -path -tunnel -alley -canal -pavement -gate "
    "-roundabout -embassy -allotment -statue -university -bridge"
)

KINDS: dict[str, str] = {
    # people
    "anybody": "crowd -baby -toddler -twin -rival",
    # things: what a shop sells, what breaks, what gets lost, what makes a present
    "goods": f"clothes furniture kitchenware instrument household !mass {PARTS_OF_CLOTHES} {PAIRS}",
    "homeware": "furniture kitchenware household !mass",
    "fixable": "tool furniture instrument household vehicle !mass -tissue -sponge -string -plug",
    "portable": f"keepsake paper toy clothes !mass {PARTS_OF_CLOTHES} {PAIRS} {NOT_PORTABLE}",
    "present": f"keepsake toy clothes instrument !mass {PARTS_OF_CLOTHES} {PAIRS} {NOT_PORTABLE}",
    "dress": f"clothes {PARTS_OF_CLOTHES} {PAIRS} -handkerchief -bib -ribbon",
    "plaything": f"toy {NOT_PORTABLE} -sticker -flashcard",
    "small_find": f"toy {NOT_PORTABLE} {PAIRS.replace('-', '+')}",
    "garden_tool": "+spade +rake +shovel +hose +wheelbarrow +trowel +hoe +ladder +pitchfork +axe",
    "seat": "+chair +sofa +bed +bench +stool +armchair +couch +settee +recliner +hammock +divan",
    "card_like": (
        "+book +map +letter +poster +card +notebook +ticket +calendar +diary +album +storybook "
        "+comic +bookmark +envelope +invitation +postcard +scroll +sketchbook +booklet +poem"
    ),
    "pan_like": (
        "+pot +pan +bowl +saucepan +wok +casserole +spoon +dish +kettle +cauldron +oven +stove "
        "+ladle +knife +whisk +steamer +plate +tray"
    ),
    "flower": "plant !mass -tree -bush -hedge -seedling -bulb -oak -pine -elm -palm",
    "bag_like": "+bag +basket +suitcase +handbag +rucksack +briefcase +purse",
    "on_wheels": (
        "+car +bicycle +van +cart +motorbike +tractor +scooter +lorry +wagon +carriage +tricycle "
        "+caravan +minibus +moped +jeep +rickshaw +tandem +sledge +limousine"
    ),
    "ride": "vehicle -pram -wheelchair -trolley -tanker -raft -bulldozer",
    # food
    "dish": f"food {SPICES} -grape -cherry -strawberry -lemon",
    "treat": f"food {SPICES}",
    "baked": BAKED,
    "fresh": FRESH,
    "food_shop": (
        "+bakery +supermarket +grocery +cafe +restaurant +delicatessen +pizzeria +pub +bistro "
        "+sweetshop +diner +takeaway +market +creperie +inn"
    ),
    "remedy": "+sunshine +sunlight +warmth",
    # places and events
    "store": "shop -market -stall -bazaar -marketplace -bookstall -mall",
    "near": "public -village -suburb -corner",
    "venue": f"public {ROADS}",
    "spot": "public nature -village -suburb -corner",
    "occasion": (
        "event -exam -holiday -trip -journey -voyage -adventure -engagement -interview -cruise "
        "-tour -excursion -expedition -homecoming -debut -anniversary -birthday -audition -lottery"
    ),
    "storm": "+rain +snow +wind +fog +ice +thunder +mist +frost +hail +drizzle +sleet +lightning",
    "weather": "weather_good weather_bad",
    "creature": f"animal {WATER_AND_INSECTS}",
    # adjectives
    "few": "+two +three +four +five +six +seven +eight +nine +ten",
    "animal_size": (
        "+small +big +large +tiny +huge +enormous +giant +massive +gigantic +slim +immense "
        "+slender +colossal +mighty"
    ),
    "pot_size": "+big +small +large +tiny +huge +wide +enormous +gigantic +miniature +oversized",
    "subject": "topic -childhood -neighbourhood -matter -situation -smell -fate",
    "gladness": "feel_good -safe -interested -eager -secure -refreshed",
    "sadness": (
        "feel_bad -hungry -thirsty -tired -sleepy -sick -ill -sore -dizzy -exhausted -weary "
        "-afraid -scared -frightened -homesick -hurt -alarmed -bored"
    ),
    "damaged": (
        "+broken +cracked +damaged +loose +rusty +worn +bent +leaky +wobbly +faulty +crooked "
        "+chipped +dented +battered +squeaky +rickety +ruined +splintered +warped +defective "
        "+unsafe +useless +shabby +filthy"
    ),
    "spoilt": (
        "+broken +dirty +torn +dusty +muddy +sticky +damaged +faded +stained +ragged +smelly "
        "+filthy +creased +crumpled +battered +tattered +grubby +ruined +scuffed +tangled "
        "+scorched +sooty +wrinkled +frayed +grimy"
    ),
    "as_new": (
        "+beautiful +useful +shiny +strong +comfortable +perfect +neat +elegant +smooth +sturdy "
        "+splendid +solid +spotless +gleaming +glossy +sleek +flawless +immaculate +wonderful"
    ),
    "harmed": "+broken +bent +ruined +battered +damaged +ragged +torn +ugly +muddy +dull",
    "grand": (
        "+wonderful +beautiful +lovely +excellent +splendid +perfect +superb +brilliant +fantastic "
        "+marvellous +magnificent +charming +remarkable +unique"
    ),
    "blooming": (
        "+beautiful +pretty +lovely +strong +colourful +splendid +magnificent +gorgeous +wonderful "
        "+impressive +marvellous +perfect +special +adorable +charming +superb"
    ),
    # verbs
    "creation": (
        "+build +create +design +craft +construct +carve +shape +assemble +finish +produce +invent "
        "+form +whittle +sculpt +mould +manufacture +devise +fabricate +complete +forge +model "
        "+improvise +customise +weld"
    ),
    "sewing": "+sew +knit +weave +stitch +embroider +crochet +design +finish +braid +spin",
    "drawing": (
        "+draw +print +copy +design +sketch +trace +outline +finish +engrave +etch +reproduce "
        "+duplicate +replicate +complete +reinvent"
    ),
    "preparing": "+prepare +serve +cook +heat +taste +reheat +chill +garnish",
    "baking": "+bake +prepare +serve +slice +heat +toast +reheat",
    "frying": (
        "cook -bake -taste -prepare -serve -melt -knead -chill -sprinkle -whip -garnish -toast "
        "-stir -reheat"
    ),
    "liked": "+admire +adore +appreciate +praise +cherish +value +fancy +prize +esteem +favour",
    "enjoyed": "+enjoy +praise +relish +adore +appreciate +remember +recommend +celebrate",
    "loved": "+adore +cherish +admire +value +appreciate +enjoy +prize",
    "disliked": (
        "+hate +dislike +despise +detest +loathe +criticise +mock +scorn +resent +abhor +disdain"
    ),
    "shunned": "mind[bad] -forget -overlook -dread",
    "tended": (
        "+water +plant +grow +tend +prune +trim +sow +transplant +cultivate +replant +nurture "
        "+spray +graft +propagate"
    ),
    "picked": "+pick +cut +pluck +harvest +uproot",
    "go": ("move -swim -slip -commute -crawl -creep"),
    "chatting": (
        "speak -complain -mutter -argue -mumble -grumble -moan -whine -groan -fuss -rant -protest "
        "-yell -quarrel -write -report -babble -boast -brag -bicker -squabble"
    ),
    "grumbling": (
        "+complain +mutter +argue +grumble +mumble +shout +moan +whine +quarrel +groan +rant +yell"
    ),
    "made_good": (
        "+clean +repair +mend +wash +fix +polish +paint +restore +wipe +scrub +dust +patch +glue"
    ),
    "party_act": "+dance +sing +laugh +play +cheer +clap +whistle +hum +juggle +rejoice +chuckle",
    "merry": (
        "+smile +laugh +sing +dance +wave +clap +cheer +grin +whistle +hum +giggle +chuckle +beam "
        "+rejoice +nod +wink +play"
    ),
    "sorrow": (
        "+sigh +cry +frown +weep +shiver +tremble +sob +scowl +sulk +blush +pause +hesitate +stare "
        "+pout +gasp +shrug"
    ),
    "calm_act": "+sleep +work +rest +eat +read +study +play +sing +smile +dance +think +nap",
    "stir": "+sleep +eat +drink +hop +leap +scratch +crouch +doze +wriggle +nibble +pounce +dig",
    "handling": "handle -drop -throw -grab -squeeze -clutch -pull -push",
    "fetching": "+fetch +bring +use +grab +carry +unpack +clean",
    "aid": (
        "+help +teach +advise +support +assist +encourage +comfort +rescue +accompany +reassure "
        "+remind +escort +join +welcome"
    ),
    # adverbs
    "tone": (
        "manner -slowly -quickly -easily -busily -safely -neatly -badly -poorly -heavily -lightly "
        "-precisely -expertly -clumsily -skilfully -smoothly -tidily -lazily -steadily -wildly"
    ),
    "with_care": (
        "+slowly +carefully +quickly +quietly +patiently +neatly +calmly +gladly +silently +safely "
        "+skilfully +eagerly +busily +cleverly +cheerfully +happily +easily +gently +gracefully "
        "+diligently +steadily +energetically +briskly +swiftly"
    ),
    "skilled": (
        "+carefully +quickly +perfectly +neatly +slowly +expertly +beautifully +properly "
        "+patiently +skilfully +cleverly +precisely +diligently +smoothly"
    ),
    "warm_tone": (
        "+happily +kindly +softly +gladly +warmly +politely +cheerfully +proudly +gently +quietly "
        "+calmly +gratefully +sweetly +joyfully +merrily +brightly +tenderly +honestly +sincerely "
        "+excitedly +eagerly +playfully +thoughtfully +generously +affectionately +courteously "
        "+enthusiastically"
    ),
    "sad_tone": (
        "+sadly +quietly +angrily +nervously +anxiously +silently +impatiently +grumpily +gloomily "
        "+miserably +wearily +reluctantly +furiously +rudely +desperately +guiltily +awkwardly"
    ),
    "animal_way": (
        "+quietly +happily +softly +loudly +slowly +gently +calmly +sadly +peacefully +lazily "
        "+sleepily +playfully +nervously +shyly +eagerly +cheerfully"
    ),
    "often": "+often +always +sometimes +usually +frequently +occasionally +constantly +repeatedly",
    "rarely": "+never +rarely +seldom",
    "regularly": "+often +always +regularly +repeatedly +constantly +frequently",
    "before": "+recently +once +earlier +previously +originally",
    "lately": "+yesterday +recently +today +earlier",
    "next": "+soon +later +finally +suddenly +eventually +afterwards +meanwhile +subsequently",
    "soon": "+soon +today +tonight +later +promptly +immediately +overnight +instantly",
}


def kind_table(kind: str, lexicon: dict[str, tuple[Entry, ...]]) -> Table:
    """The distribution over the words of a kind; errors name the kind and the word."""
    chosen: dict[str, Entry] = {}
    words = {entry.lemma: entry for entries in lexicon.values() for entry in entries}
    for item in KINDS.get(kind, kind).split():
        if item == "!mass":
            chosen = {word: entry for word, entry in chosen.items() if "mass" not in entry.marks}
        elif item[0] in "+-":
            if item[1:] not in words:
                raise DataError(f"kind {kind!r}: {item[1:]!r} is not in the lexicon")
            if item[0] == "+":
                chosen[item[1:]] = words[item[1:]]
            else:
                chosen.pop(item[1:], None)
        else:
            name, _, mark = item.rstrip("]").partition("[")
            if name not in lexicon:
                raise DataError(f"kind {kind!r}: there is no class {name!r} in the lexicon")
            chosen |= {e.lemma: e for e in lexicon[name] if not mark or mark in e.marks}
    weights: dict[str, float] = {}
    for place, name in enumerate(dict.fromkeys(entry.kind for entry in chosen.values()), 1):
        members = [lemma for lemma, entry in chosen.items() if entry.kind == name]
        weights |= {m: share / place for m, share in zip(members, zipf(len(members)))}
    return Table(chosen.values(), [weights[lemma] for lemma in chosen])
