# %% [markdown]
# # Train, and watch it learn
#
# `Training` is `qherd train` as a context manager: the run is at work while the block runs, and whatever ends the block
# (`run.stop()`, an error, the notebook's *interrupt*) ends it with a checkpoint. All of it is in docs/python.md.

# %%
from matplotlib import pyplot as plt

from deploy import Training

# %% [markdown]
# Options have the names of the command line. CartPole is solved in a minute or less.

# %%
steps, returns = list[int](), list[float]()
with Training("CartPole-v1", overrides={"budget.seconds": 120}) as run:
    for progress in run:
        print(f"{progress.phase}: {progress.env_steps} env steps, greedy return {progress.greedy_return}")
        if progress.greedy_return is not None:
            steps.append(progress.env_steps)
            returns.append(progress.greedy_return)
print(f"{run.outcome.ended}: {run.directory}")

# %% [markdown]
# The curve, as it came in; `qherd report` draws it with all that belongs to it.

# %%
figure, axes = plt.subplots(layout="constrained")
axes.plot(steps, returns, drawstyle="steps-post")
axes.set(xlabel="env steps", ylabel="greedy return", title=run.config.env.id)
figure.savefig(run.directory / "curve.png")
