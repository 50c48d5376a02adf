"""Syllables and words from which names and values are put together."""

STARTS = (
    "Al Bar Bel Bor Cal Cor Dal Dor El Fal Fen Gar Gol Hal Har Hol Il Jar Kal Kel Kor Lan Lor Mar Mel Mor Nar Nor "
    "Ol Or Pel Pol Quen Ral Ros Sal Sel Sor Tal Tor Ul Val Vel Vor Wal Wes Wil Yar Zan Zel"
).split()
MIDDLES = ("", "", "a", "e", "i", "o", "da", "le", "mi", "na", "ri", "tu")
ENDS = (
    "bay berg bury dale den dor field ford gard grad grove ham haven heim hurst land ley lin mar mere mont mouth "
    "nes nia ria sby sen stad stead stow thal thorpe ton vik ville ward wick wold worth zig"
).split()
FAMILY_ENDS = (
    "aldi bacher ckner dez dson gren ic inen ira kov lund man mann nsky ota ova quist rini sen ström ter vski"
).split()
FIRST_NAMES = (
    "Ada Agnes Albert Alma Anton Beatrix Bruno Carla Casper Clara Daniel Dora Edgar Elena Emil Ester Felix Flora "
    "Frida Georg Greta Gustav Hanna Hedda Henrik Hugo Ida Irma Ivan Jakob Johan Julia Karl Karin Klara Leo Lina "
    "Louis Lydia Magda Marco Martha Max Mila Nadia Nils Nora Oscar Otto Paula Peter Petra Rosa Rudolf Sara Selma "
    "Simon Sofia Stefan Thea Theo Ursula Vera Victor Viola Walter Wanda Xaver Yvonne Zelda"
).split()
ADJECTIVES = (
    "Amber Ancient Blind Blue Bright Broken Burning Copper Crimson Dark Distant Drowned Empty Frozen Gentle Golden "
    "Green Grey Hidden Hollow Iron Ivory Laughing Lonely Lost Painted Pale Patient Proud Purple Quiet Red Restless "
    "Scarlet Silent Silver Sleeping Stolen Swift Tall Velvet Wandering White Wild Winter Wooden Yellow Young"
).split()
NOUNS = (
    "Anchor Apple Arrow Baker Bell Bird Boat Candle Carpenter Cherry Clock Compass Crown Dancer Drummer Eagle "
    "Falcon Farmer Feather Ferry Fiddler Fox Garden Gate Glove Hammer Harbour Harp Hawk Heron Horse Hunter Juggler "
    "Key Lamp Lantern Lark Lily Lion Meadow Miller Mirror Moon Orchard Otter Owl Petrel Pilgrim Raven River Rose "
    "Sailor Shepherd Star Swan Sword Tailor Tower Tree Violin Weaver Well Whale Window Wolf"
).split()
MATERIALS = (
    "alder amber ash bamboo birch brass bronze cedar cherry clay copper cork cotton crystal ebony elm felt flax "
    "glass granite hazel hemp horn iron ivory jade leather linen maple marble oak paper pearl pewter pine porcelain "
    "silk silver slate steel straw tin velvet walnut wax willow wool"
).split()
WARES = (
    "axles barrels baskets beads bells belts boots bottles bowls boxes brushes buckets buttons candles caps carpets "
    "chairs chests clocks combs cups curtains dolls drums figures flutes forks frames gloves hats hooks jars kites "
    "knives ladders lamps locks masks mats mugs needles nets oars pens pipes plates pots ropes saddles sails scales "
    "shoes spoons stoves tables tiles toys trays vases wheels whistles"
).split()
BIRDS = (
    "bunting crane curlew duck finch gull hawk heron lark owl parrot plover puffin rail shrike teal tern thrush "
    "warbler wren"
).split()

#: words of the language that stand in generated names and values
COMMON_WORDS = (*FIRST_NAMES, *ADJECTIVES, *NOUNS, *MATERIALS, *WARES, *BIRDS)
