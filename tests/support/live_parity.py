"""Every case of live models: what ``live_models`` and its neighbours write, in one folder."""

from __future__ import annotations

from pathlib import Path


def write_live_models(root: Path) -> None:
    """Write the cases; needs transformers and diffusers."""
    from support import described_models, live_diffusers, live_models, live_priors

    for write in (
        live_models.llamagen_vq,
        live_models.taming_vq,
        live_models.rqvae,
        live_diffusers.diffusers_vq,
        live_diffusers.sd_kl,
        live_priors.llamagen_gpt,
        live_priors.net2net,
        described_models.openai_dvae,
        described_models.open_magvit2,
    ):
        write(root)
