# %% [markdown]
# # A memory that outlives the run
#
# Text is compressed, section by section, into blocks of two vectors, which are kept on disk and
# found again by a learned index. Which blocks an answer rests on can be shown, and they can be
# cleared. About a minute on one CPU core.
#
# The next cell installs the library where it is absent, as on Colab: replace URL by the address
# of its repository.

# %%
import importlib.util

if importlib.util.find_spec("thinkers") is None:
    from IPython import get_ipython

    get_ipython().run_line_magic("pip", 'install -q "thinkers[report] @ git+URL"')

# %% [markdown]
# ## A model that reads into a memory
#
# Stories are numbered statements, "1 Emma went to the cellar.", and questions are "Where is
# Emma?", to be answered from the last statement about her. The model never sees a statement and a
# question together: it compresses each statement to a block, and its thinking steps read blocks.
# The recipe `babi_sections/thinker` learns stories of 64 statements in some minutes; stories of 8
# take a fraction of that.

# %%
from dataclasses import replace

import matplotlib.pyplot as plt

import thinkers
from thinkers.memory import LongTermMemory

config = thinkers.RECIPES["babi_sections/thinker"]()
config = replace(
    config,
    task=replace(config.task, statements=8, window=200),
    model=replace(config.model, vocab_size=None, max_length=None),
    training=replace(config.training, num_updates=320, warmup_updates=50),
)
run = thinkers.train(config, out="runs/memory")
run

# %% [markdown]
# ## Write and ask
#
# Texts go into a folder, under topics. They stay there for other processes and other days, and
# belong to the weights of this model. The diary knows that Clara has moved; who does not read it
# believes the letters.

# %%
letters = [
    "1 Clara went to the attic.",
    "2 Emma ran to the library.",
    "3 Hugo went to the orchard.",
]
diary = ["4 Clara moved to the harbour."]
question = "Where is Clara?"
with LongTermMemory.create("runs/notes", run) as memory:
    memory.write(letters, topic="letters", keep_text=True)
    memory.write(diary, topic="diary", keep_text=True)
    topics = memory.topics()
    with_both = thinkers.answer(run, question, memory=memory)
    without = thinkers.answer(run, question, memory=memory.part(topics=["letters"]))
print("blocks:           ", topics)
print("with both:        ", with_both)
print("without the diary:", without)

# %% [markdown]
# ## What the answer rests on
#
# `inspect` has the blocks that were read at each step with their attention, and the probability
# of the answer with each of them left out. With `out` it also writes a page.

# %%
with LongTermMemory.open("runs/notes", run) as memory:
    seen = thinkers.inspect(run, question, memory=memory, out="runs/memory/report.html")
reading = seen.memory
texts = {block.id: block.text for block in reading.blocks}
for block in reading.blocks:
    print(f"step {block.step}  {block.topic:8} attention {block.mass:.3f}  {block.text}")

names = ["all blocks"] + [f"without {texts[other.id]!r}" for other in reading.without]
chances = [reading.chance] + [other.chance for other in reading.without]
figure, axes = plt.subplots(figsize=(7, 2.4), layout="constrained")
axes.barh(names, chances)
axes.invert_yaxis()
axes.set(xlabel=f"probability of {reading.answer!r}", xlim=(0, 1))
print("probabilities:", [round(chance, 3) for chance in chances])

# %% [markdown]
# ## Clear a topic
#
# Not a byte of it is left in the folder, and the model is back at what the letters say.

# %%
with LongTermMemory.open("runs/notes", run) as memory:
    cleared = memory.clear(topic="diary")
    left = memory.topics()
    forgotten = thinkers.answer(run, question, memory=memory)
print(f"cleared {cleared} block, left: {left}")
print("afterwards:", forgotten)
