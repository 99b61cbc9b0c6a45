"""Models of other toolkits become checkpoints; one module a toolkit, imported when it is asked for.

A module `nmt.imports.TOOLKIT` has

    Options     a dataclass whose fields are the flags of `nmt import TOOLKIT`
    load(source: str, options: Options) -> Checkpoint

and imports nothing heavy (torch, the toolkit) before `load`. Nothing that is loaded may run code: no pickle but through
torch's weights_only, no code that comes with a model. `load` raises UserError for what does not fit, with the reason.
"""

TOOLKITS = {
    "fairseq": "a recurrent model (arch lstm) of fairseq: its checkpoint_best.pt",
    "hf": "a transformers encoder-decoder: its name on the hub, or the folder of save_pretrained",
    "joeynmt": "a recurrent model of joeynmt: its model_dir, or a checkpoint in it",
    "marian": "a recurrent model (type s2s, amun or nematus) of Marian or Nematus: its model.npz",
    "opennmt": "a recurrent model of OpenNMT-py: its checkpoint, MODEL_step_N.pt",
}
"""The toolkits, and what the source of an import is."""
