"""The `incipit` command. Each command imports what it needs when it runs, so that --help is quick."""

import typer

from incipit.commands import (
    analyze,
    ask,
    backup,
    bench,
    checkpoints,
    demo,
    doctor,
    evaluate,
    export,
    keys,
    models,
    prompts,
    rollout_server,
    runs,
    store,
    study,
    track,
    train,
    up,
    workers,
)

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prefix on-policy distillation: train a small model to follow a big one, on the first tokens only.",
)
app.command()(demo.demo)
app.command()(up.up)
app.command()(train.train)
app.command()(train.check)
app.command()(analyze.analyze)
app.command()(ask.ask)
app.command()(study.study)
app.command()(track.track)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command(context_settings=bench.SETTINGS)(bench.bench)
app.command("rollout-server", context_settings=rollout_server.SETTINGS)(rollout_server.rollout_server)
app.command()(doctor.doctor)
app.command()(backup.backup)
app.command()(backup.restore)
app.add_typer(runs.app, name="runs")
app.add_typer(workers.app, name="workers")
app.add_typer(checkpoints.app, name="checkpoints")
app.add_typer(store.app, name="store")
app.add_typer(models.app, name="models")
app.add_typer(prompts.app, name="prompts")
app.add_typer(keys.app, name="keys")
