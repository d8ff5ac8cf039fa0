"""Fault tolerance for your own training loop: a function and its state survive the death of ranks.

    state = ddl.elastic.State(w=np.zeros(10), step=0)

    def train(state, world):
        while state.step < 100:
            gradient = sum((gradient_of(shard, state.w) for shard in world.shards), np.zeros(10))
            state.w -= 0.1 * world.allreduce(gradient)
            state.step += 1
            state.commit()

    ddl.elastic.run(train, state, shards=12)

After a failure the survivors return to the newest commit, take over the dead rank's shards and call the function
again. ``world.batches`` gives each rank its samples of a step; ``resilient`` is ``run`` as decorator. For a model with
data and an optimizer use ``ddl.Trainer``, which does this for you."""

from ddl.elastic.run import resilient, run
from ddl.elastic.state import State, World

__all__ = ["State", "World", "resilient", "run"]
