"""Runs: settings, the folder that a run lives in, many of them, their figures, their report, and the command."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=["chain", "cli", "evaluation", "report", "run", "settings", "sweep"],
    submod_attrs={
        "settings": ["CURVES", "PRESETS", "Settings", "SettingsError", "check_parameters", "make_settings"],
        "run": ["Run", "default_folder", "diagnose_run", "execute", "load_run", "runs_folder"],
        "chain": ["new_denoiser"],
        "sweep": ["mean_by_steps"],
        "evaluation": ["evaluate"],
        "report": ["ReportError", "chains_table", "claim", "from_notebook", "write_report"],
    },
)
