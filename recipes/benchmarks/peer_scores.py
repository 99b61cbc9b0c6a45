"""Runs in the environment of joeynmt and OpenNMT-py (see peers.py): prints "SCORE x" for each pair of a test set, the
log-probability of the target in nats, as the toolkit's own code computes it.

    PEERS/bin/python peer_scores.py joeynmt CONFIG
    PEERS/bin/python peer_scores.py opennmt FLAGS OF onmt_translate, -tgt AMONG THEM
"""

import sys
from pathlib import Path


def joeynmt(config: str) -> list[float]:
    from joeynmt.config import load_config, parse_global_args
    from joeynmt.prediction import predict, prepare

    args = parse_global_args(load_config(Path(config)), rank=0, mode="test")
    model, _, _, data = prepare(args, rank=0, mode="test")
    data.reset_indices(random_subset=-1)
    scores = predict(
        model=model,
        data=data,
        compute_loss=True,
        device=args.device,
        rank=0,
        n_gpu=0,
        num_workers=0,
        normalization="none",
        args=args.test,
        autocast=args.autocast,
    )[4]
    return [float(sum(score)) for score in scores]


def opennmt(flags: list[str]) -> list[float]:
    from onmt.bin import translate
    from onmt.translate.translator import Translator

    found: dict[int, float] = {}
    score = Translator._score_target

    def record(self, batch, *others):  # type: ignore[no-untyped-def]
        result = score(self, batch, *others)
        found.update(zip(batch["indices"].tolist(), result.tolist(), strict=True))
        return result

    Translator._score_target = record
    translate.translate(translate._get_parser().parse_args(flags))
    return [found[number] for number in sorted(found)]


if __name__ == "__main__":
    toolkit, *words = sys.argv[1:]
    for value in joeynmt(*words) if toolkit == "joeynmt" else opennmt(words):
        print("SCORE", repr(value))
