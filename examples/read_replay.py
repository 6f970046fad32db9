# %% [markdown]
# # Read a run's replay memory while it trains
#
# Any process may read along, without a right to write: here the program that has started the run, as well another one
# that is given the run's folder.

# %%
import numpy as np

import replay
from deploy import Training

# %% [markdown]
# The server is there as soon as the run trains. `poll` takes in what has arrived, `sample` draws transitions.

# %%
with Training("CartPole-v1", overrides={"budget.seconds": 60}) as run:
    next(progress for progress in run if progress.phase != "starting")
    url = (run.directory / "replay.url").read_text()
    with replay.attach(url, run.directory.name) as memory:
        for progress in run:
            memory.poll()
            print(f"{progress.env_steps} env steps of the run, {memory.mirror.end} rows read")
            if memory.mirror.end >= 2000:
                break
        s_tm1, a_tm1, r_t, discount_t, _ = memory.sample(1000)

# %% [markdown]
# The block has ended, and the run with it; the sample is ours.

# %%
print(f"{len(s_tm1)} transitions, {memory.description.n_step} steps long at most")
print("pushed to the left and to the right:", np.bincount(a_tm1, minlength=2))
print(f"the pole's angle: {s_tm1[:, 2].mean():.3f} ± {s_tm1[:, 2].std():.3f} rad")
print(f"mean reward {r_t.mean():.2f}; {np.mean(discount_t == 0):.1%} end the episode")
