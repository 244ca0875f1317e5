"""The operators: train, evaluate, publish, predict. Heavy imports happen when a task runs, so DAGs are parsed fast."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from airflow.sdk import BaseOperator, conf
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowSkipException,
    TaskDeferralTimeout,
)

from dfm.airflow import runtime, tasks
from dfm.airflow.links import DaskDashboardLink, ReportLink
from dfm.airflow.triggers import DfmDaskJobTrigger, DfmRunTrigger
from dfm.errors import RunCancelled, SettingsError
from dfm.runs import lifecycle
from dfm.runs import record as runs
from dfm.settings.arguments import check_bad_rows, texts
from dfm.settings.job import Job
from dfm.workflow.gate import Gate

ON_REFUSAL = ("fail", "skip", "continue")


class _DfmOperator(BaseOperator):
    """The common part of the operators: the two connections, the links, and which errors are worth another try."""

    template_fields: Sequence[str] = ("dask_conn_id", "storage_options")
    operator_extra_links = (DaskDashboardLink(), ReportLink())
    ui_color = "#fdf2e9"

    def __init__(
        self,
        *,
        dask_conn_id: str | None = "dask_default",
        storage_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**{"multiple_outputs": True, **kwargs})
        self.dask_conn_id = dask_conn_id
        self.storage_options = runtime.options_of(storage_options)
        self.dashboard_url = ""
        self.report_url = ""

    def execute(self, context: Any) -> Any:
        """Do the work of the interval; an error that would come again fails the task without another try."""
        with tasks.failing_at_once():
            self._find_dashboard()
            self.storage_options = runtime.options_of(self.storage_options)  # as templates left them
            return self.work(context)

    def work(self, context: Any) -> Any:
        """The operator's work, in its subclass."""
        raise NotImplementedError

    def _find_dashboard(self) -> None:
        """Find the dashboard's link. Airflow asks for links whenever a process of the task ends, deferred or not."""
        if self.dask_conn_id:
            self.dashboard_url = runtime.hook_of(self.dask_conn_id).dashboard()

    def _show_report(self, url: str, context: Any) -> None:
        """Link to a report: to its own address, or to the page of Airflow's server that shows it."""
        self.log.info("report: %s", url)
        self.report_url = runtime.address_of_report(url, self.storage_options, context)


class DfmTrainOperator(_DfmOperator):
    """Trains a job for the data interval and publishes its model below `models`; returns {"model", "validation", …}.

    Output location and run id follow from DAG, task and data interval. A try after the first waits for the driver where
    it still works, goes on from its checkpoint where it died, and returns at once where it was finished on this data.

    :param job: job file (a relative path starts at the DAG's file), or its tables; checked when the DAG is parsed
    :param models: root of all models, `models/DAG/TASK/INTERVAL/model`; not needed where the job has output.directory
    :param overrides: "table.key=value", as on the command line
    :param warm_start: "previous" for the model of the latest interval before (not with an output.directory), or the URL
        of a model or of an alias; where there is none yet, training starts from the beginning
    :param dask_conn_id: connection of type `dask`; None: the job's [cluster] decides
    :param storage_options: options of the filesystem, without secrets; those of the job come first
    :param target: "kubernetes": train as a DaskJob of the job's [kubernetes], which workers and triggerers of Airflow
        create and watch by their kubeconfig or service account (deploy/kubernetes/base/access.yaml); "auto": there
        where the connection has the extra `kubernetes`, else on its Dask cluster
    :param deferrable: hand the driver to the Dask cluster (or to a process of its own) and wait in the triggerer
    :param poll_interval: seconds between two looks at the run
    """

    template_fields: Sequence[str] = ("job", "models", "warm_start", "dask_conn_id", "storage_options")

    def __init__(
        self,
        *,
        job: str | os.PathLike[str] | Mapping[str, Any] | Job,
        models: str = "",
        overrides: Sequence[str] = (),
        warm_start: str = "",
        target: str = "auto",
        deferrable: bool = conf.getboolean("operators", "default_deferrable", fallback=False),
        poll_interval: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if target not in runtime.TARGETS:
            raise SettingsError(f"target = {target!r} is not legal: expected {' or '.join(runtime.TARGETS)}")
        self.target = target
        self.job = runtime.tables_of(self._in_full(job), overrides)
        data = self.job.get("data", {})
        self.storage_options = data.get("storage_options") or self.storage_options
        if self.storage_options:
            self.job["data"] = {**data, "storage_options": self.storage_options}
        if not models and not self.job.get("output", {}).get("directory"):
            raise SettingsError(f"task {self.task_id!r} does not say where models go: set models, or output.directory")
        runtime.check_start(self.job, warm_start)
        self.models = models
        self.warm_start = warm_start
        self.deferrable = deferrable
        self.poll_interval = poll_interval
        self._running: tuple[str, dict[str, Any]] | None = None
        self._run_id = ""
        self._namespace = ""
        self._is_killed = False

    def _in_full(self, job: Any) -> Any:
        """A job file that is named without a folder lies beside the DAG's file."""
        if not isinstance(job, str | os.PathLike) or os.path.isabs(job) or not self.has_dag():
            return job
        return os.path.join(os.path.dirname(self.dag.fileloc), job)

    def work(self, context: Any) -> dict[str, Any]:
        """Train here, or have it done elsewhere and wait in the triggerer."""
        from dfm.workflow import steps

        job = self._resolved(context)
        if not self.deferrable:
            return self._trained_here(context, job)
        job, run_id = runtime.as_driven_elsewhere(job), self._run_id
        if record := steps.finished_run(job):
            return self._result(context, job.output.directory, record.run_id)
        self.log.info("run %s goes on without this task: dfm logs %s --follow", run_id, job.output.directory)
        self.defer(
            trigger=self._trigger(job, run_id), method_name="execute_complete", timeout=self.execution_timeout,
            kwargs={"job_fingerprint": job.fingerprint()},
        )  # fmt: skip
        raise AssertionError("unreachable")

    def _resolved(self, context: Any) -> Job:
        """The job of this interval; what kills this task is to stop its run."""
        job = tasks.job_of(self.job, self.models, context, self.dask_conn_id, self.warm_start)
        self._run_id = runtime.run_id(context)
        self.storage_options = dict(job.data.storage_options)
        self._running = job.output.directory, self.storage_options
        self._namespace = job.kubernetes.namespace
        return job

    def _trained_here(self, context: Any, job: Job) -> dict[str, Any]:
        """The outcome of a training that this task drives, or waits for, itself."""
        told = tasks.EventLog()
        try:
            done = tasks.train_here(job, self._run_id, self.dask_conn_id, self.poll_interval, self.target, told)
        except RunCancelled as error:
            if self._is_killed:  # whoever killed the task says whether there is another try
                raise AirflowException(str(error)) from error
            raise
        return self._result(context, job.output.directory, done["run_id"], told.epochs)

    def _trigger(self, job: Job, run_id: str) -> DfmRunTrigger | DfmDaskJobTrigger:
        """The trigger that waits for the run, whose driver is started where none is at work."""
        from dfm.workflow import steps

        directory, options = job.output.directory, dict(job.data.storage_options)
        if runtime.on_kubernetes(self.target, self.dask_conn_id):
            name = runtime.dask_job_of(job, run_id)
            return DfmDaskJobTrigger(directory, name, job.kubernetes.namespace, options, self.poll_interval)
        by_process = runtime.drives_itself(job)
        if not steps.running_driver(job, by_process, run_id):
            runtime.start_driver(job, run_id)
        return DfmRunTrigger(directory, options, self.poll_interval, by_process, run_id)

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Any) -> Any:
        """Go on after the wait; where it took too long (`execution_timeout`), the run is asked to stop."""
        try:
            return super().resume_execution(next_method, next_kwargs, context)
        except TaskDeferralTimeout:
            self._resolved(context)
            self.on_kill()
            raise

    def execute_complete(self, context: Any, event: dict[str, Any], job_fingerprint: str = "") -> dict[str, Any]:
        """The run is over, or its driver is gone: then the next try goes on from its checkpoint.

        job_fingerprint: of the job that is meant; "": any, as for tasks that an earlier version deferred.
        """
        from dfm.workflow import steps

        self._find_dashboard()
        run_id = runtime.run_id(context)
        if event["state"] == "superseded" or event["run_id"] not in ("", run_id):
            raise AirflowFailException(str(steps.superseded(event["run_id"], event["directory"])))
        if event["state"] == "lost":
            why = event.get("reason") or f"the driver of run {event['run_id']} is gone"
            raise AirflowException(f"{why}; another try goes on from its checkpoint")
        if lifecycle.of(event["state"]).engine == lifecycle.GIVE_UP:
            raise AirflowFailException(f"run {event['run_id']} is {event['state']}; clear the task to go on with it")
        with tasks.failing_at_once():
            self.storage_options = runtime.options_of(self.storage_options)
            return self._result(context, event["directory"], run_id, job_fingerprint=job_fingerprint)

    def _result(
        self, context: Any, directory: str, run_id: str, epochs_told: Collection[int] = frozenset(),
        job_fingerprint: str = "",
    ) -> dict[str, Any]:  # fmt: skip
        """The outcome of a run, told in the task's log. SettingsError where another run has taken its place."""
        from dfm.model.report import report_training
        from dfm.workflow import steps

        options = self.storage_options
        record = steps.raise_unless_finished(runs.read_run(directory, options), directory, run_id, job_fingerprint)
        events = [e for e in runs.read_events(directory, options) if e.get("epoch") not in epochs_told]
        for line in runtime.lines_of_run(record, events, directory):
            self.log.info("%s", line)
        self._show_report(report_training(directory, record.run_id, options), context)
        return steps.outcome(record)

    def on_kill(self) -> None:
        """Ask the run to stop, and end its DaskJob; it keeps its checkpoint."""
        self._is_killed = True
        if not self._running:
            return
        directory, options = self._running
        asked = runtime.ask_to_stop(directory, options, self._run_id)
        if asked and runtime.on_kubernetes(self.target, self.dask_conn_id):
            runtime.end_dask_job(directory, options, self._namespace)


class DfmEvaluateOperator(_DfmOperator):
    """Evaluates a model on labelled shards that it was not trained on; returns the metrics.

    :param model: URL of a model, or of an alias for its champion
    :param data: paths, folders, globs or URLs of Parquet files
    :param unseen: refuse shards that the model, or one that it goes on from, was trained on
    :param on_bad_rows: "error" or "skip"
    """

    template_fields: Sequence[str] = ("model", "data", "dask_conn_id", "storage_options")

    def __init__(
        self,
        *,
        model: str,
        data: str | Sequence[str],
        unseen: bool = True,
        on_bad_rows: str = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_bad_rows(on_bad_rows)
        self.model = model
        self.data = data
        self.unseen = unseen
        self.on_bad_rows = on_bad_rows

    def work(self, context: Any) -> dict[str, Any]:
        """Evaluate; metrics of the same model and shards are kept, and found again."""
        return tasks.evaluate(
            self.model, self.data, self.dask_conn_id, self.storage_options, self.on_bad_rows, self.unseen
        )  # fmt: skip


class DfmPublishOperator(_DfmOperator):
    """Compares a candidate with the champion on the same validation window and promotes it where the gate lets it.

    The alias changes in one step. A model of an earlier interval never replaces one of a later interval, so backfills
    are safe; a model that was rolled back does not return.

    :param candidate: URL of the model
    :param alias: folder or URL that names the champion
    :param data: the validation window: shards that the candidate was not trained on
    :param gate: thresholds by name (`dfm.workflow.gate.Gate`): log_loss_ratio, calibration_low, calibration_high,
        normalized_entropy, min_rows; slices (columns such as ["site"], in none of whose values the candidate may be
        worse by more than slice_loss_ratio), slice_min_rows
    :param order: when the candidate's data ended (a moment, as 2026-11-30); by default the end of the data interval, or
        of a run without one the moment when it was due
    :param on_bad_rows: "error" or "skip"
    :param on_refusal: "fail" (without another try), "skip", or "continue" (the answer says promoted: False). A model
        older than the champion, or that was it before, is no refusal: it is left alone, and the answer says older: True
    """

    template_fields: Sequence[str] = ("candidate", "alias", "data", "order", "dask_conn_id", "storage_options")

    def __init__(
        self,
        *,
        candidate: str,
        alias: str,
        data: str | Sequence[str],
        gate: Mapping[str, Any] | None = None,
        order: str = "",
        on_refusal: str = "fail",
        on_bad_rows: str = "error",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        Gate.from_dict(gate or {})
        check_bad_rows(on_bad_rows)
        if on_refusal not in ON_REFUSAL:
            raise SettingsError(f"on_refusal = {on_refusal!r} is not legal: expected {' or '.join(ON_REFUSAL)}")
        self.candidate = candidate
        self.alias = alias
        self.data = data
        self.gate = dict(gate or {})
        self.order = order
        self.on_refusal = on_refusal
        self.on_bad_rows = on_bad_rows

    def work(self, context: Any) -> dict[str, Any]:
        """Judge and promote; the answer says what the champion is now."""
        order = self.order or runtime.order_of(context)
        result = tasks.publish(
            self.candidate, self.alias, self.data, self.gate, self.dask_conn_id, self.storage_options, order, False,
            self.on_bad_rows,
        )  # fmt: skip
        if not result["promoted"]:
            refusal = "; ".join(result["refusals"])
            if result["older"]:
                self.log.info("%s", refusal)
                return result
            self.log.warning("%s", refusal)
            context[runtime.REFUSAL] = refusal
            context["ti"].xcom_push(key="return_value", value=result)  # a skipped task returns nothing
            if self.on_refusal == "fail":
                raise AirflowFailException(refusal)
            if self.on_refusal == "skip":
                raise AirflowSkipException(refusal)
        return result


class DfmPredictOperator(_DfmOperator):
    """Scores shards into Parquet parts with a column "prediction"; returns the row account.

    :param model: URL of a model, or of an alias for its champion
    :param data: paths, folders, globs or URLs of Parquet files
    :param scores: folder or URL of the parts, apart from the data; those of an earlier model are replaced
    :param beside: whether files that dfm did not make may lie in `scores`; they stay there
    :param keep: input columns to keep; by default all
    :param on_bad_rows: "error" or "skip"
    """

    template_fields: Sequence[str] = ("model", "data", "scores", "keep", "dask_conn_id", "storage_options")

    def __init__(
        self,
        *,
        model: str,
        data: str | Sequence[str],
        scores: str,
        keep: str | Sequence[str] = (),
        on_bad_rows: str = "error",
        beside: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_bad_rows(on_bad_rows)
        self.model = model
        self.data = data
        self.scores = scores
        self.beside = beside
        self.keep = list(texts("keep", keep))
        self.on_bad_rows = on_bad_rows

    def work(self, context: Any) -> dict[str, Any]:
        """Score; scores of the same model and shards are left alone. Skipped as long as an alias has no champion."""
        if not tasks.is_model(self.model, self.storage_options):
            raise AirflowSkipException(f"there is no model at {self.model} yet")
        return tasks.predict(
            self.model, self.data, self.scores, self.keep, self.dask_conn_id, self.storage_options, self.on_bad_rows,
            self.beside,
        )  # fmt: skip


class DfmReportOperator(_DfmOperator):
    """Writes a page about the night; returns {"report": its URL, "sections": their names}.

    :param url: URL or path of the page, which replaces that of an earlier try
    :param title: its heading
    :param sections: by name what a task returned (`train.output`, …), or None where it did not run
    """

    template_fields: Sequence[str] = ("url", "title", "sections", "dask_conn_id", "storage_options")

    def __init__(self, *, url: str, title: str, sections: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**{"dask_conn_id": None, **kwargs})
        self.url = url
        self.title = title
        self.sections = dict(sections)

    def work(self, context: Any) -> dict[str, Any]:
        """Write the page."""
        found = tasks.report(self.url, self.title, self.sections, self.storage_options)
        self._show_report(self.url, context)
        return found
