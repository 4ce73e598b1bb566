"""Train the policy of a MAW layer on a reward of your own, while the encoder stays as it is.

    python examples/own_reward.py --output model/

The reward here: the share of a depth's attention that goes to words, rather than to the tokens that the tokenizer puts
around them. It is one function of what the layer is given; put yours in its place. The trained policy is the layer's
own, so the saved model mixes its depths by it. docs/reward.md says how a reward becomes a setting of the library.
"""

import argparse
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer
from torch import Tensor

import maw
from maw import grpo
from maw.hf.attach import maw_layers
from maw.reference import depth_last, expand_key, expand_query, score_slices
from maw.retrieval.data.loading import load_dataset
from maw.retrieval.models import packaged_encoder
from maw.selector import token_mean


def attention_to_words(query: Tensor, key: Tensor, layer: maw.DepthAttention) -> Tensor:
    """The reward of all depths for one text, (1, D): queries and keys are (1, H, Q, C), marks at the ends."""
    u, t = expand_query(query, layer.query_views), expand_key(key, layer.key_views)
    attention = (layer.scale * depth_last(score_slices(u, t))).softmax(dim=3)  # over keys: (1, H, Q, K, D)
    return attention[:, :, :, 1:-1].sum(dim=3).mean(dim=(1, 2))


@torch.no_grad()
def look(model: SentenceTransformer, layer: maw.DepthAttention, text: str) -> tuple[Tensor, Tensor]:
    """The selector's state for a text, (1, S), and the rewards of all depths, (1, D)."""
    given: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, args: given.extend(args[:2]))
    model.encode([text], show_progress_bar=False)
    hook.remove()
    query, key = given
    return token_mean(query), attention_to_words(query, key, layer)


def main(arguments: list[str] | None = None) -> None:
    """Collect states and rewards, train the policy, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the model's folder")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args(arguments)

    torch.manual_seed(0)
    model = SentenceTransformer(str(packaged_encoder()), device="cpu")
    model.max_seq_length = 64
    maw.attach(model, maw.MAWConfig(layers=[0], depth=64, tau=1.0))  # weights are the policy itself
    (layer,) = maw_layers(model)
    texts = list(load_dataset("pydocs").queries.values())[: options.texts]
    found = [look(model, layer, text) for text in texts]
    states, rewards = (torch.cat(part) for part in zip(*found, strict=True))

    config, optimiser = layer.config, torch.optim.AdamW(layer.selector.parameters(), lr=1e-3)
    weights = {"auxiliary_weight": 1.0, "value_weight": 0.5, "kl_weight": 0.0, "entropy_weight": 0.01}
    for _ in range(options.steps):
        logits = layer.selector.policy(states)
        chosen = grpo.sample_group(logits, config.group_size)
        before = grpo.log_probability(logits.detach(), chosen)
        reward, value = rewards.gather(1, chosen), layer.selector.value(states)
        loss = grpo.group_loss(
            logits, value, chosen, reward, before, advantage=config.advantage, clip=config.clip, **weights
        ).loss
        optimiser.zero_grad()
        loss.mean().backward()
        optimiser.step()

    expected = (layer.selector.policy(states).softmax(dim=-1) * rewards).sum(dim=-1).mean()
    best = rewards.max(dim=-1).values.mean()
    print(f"mean reward: all depths alike {rewards.mean():.3f}, policy {expected:.3f}, best depth {best:.3f}")
    model.save_pretrained(str(options.output))


if __name__ == "__main__":
    main()
