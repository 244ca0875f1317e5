"""Names that other tools give to what a knob of dfm does, so that an unknown key can be answered with ours."""

from __future__ import annotations

_NAMES = {
    "data.on_bad_rows": "bad_rows skip_bad_rows on_error errors",
    "data.train": "training train_data train_path train_set training_data input inputs path paths",
    "data.validation": "valid val valid_data val_data validation_data eval_data eval_set test test_data",
    "schema.categorical": "cat_features categorical_feature categorical_features categorical_columns cat_cols sparse",
    "schema.crosses": "interactions interaction crossed_columns feature_crosses quadratic",
    "schema.group": "qid query query_id group_id group_column user_column session",
    "schema.label": "target y label_column label_col response label_name",
    "schema.lists": "multi_hot multivalued sequence_features",
    "schema.numeric": "numerical numeric_features numerical_features numeric_columns num_cols continuous dense",
    "schema.time": "timestamp time_column date date_column",
    "schema.weight": "sample_weight weights weight_column importance",
    "model.hash_bits": "bits bit_precision b num_buckets n_buckets hash_size hash_bucket_size num_features",
    "model.init_stdev": "init_std init_sigma initial_stdev stdev init",
    "model.loss": "objective loss_function criterion",
    "model.min_count": "min_freq min_frequency min_df threshold min_occurrences",
    "model.n_factors": "k rank dim d factors n_components num_factors latent_dim embedding_dim embedding_size",
    "model.n_models": "n_estimators ensemble ensemble_size bagging",
    "model.seed": "random_state random_seed",
    "model.task": "mode problem_type",
    "training.averages_per_epoch": "syncs_per_epoch sync_every",
    "training.backend": "device gpu use_gpu accelerator",
    "training.early_stopping": "early_stop",
    "training.factor_rate_scale": "factor_learning_rate lr_factors",
    "training.l2_factors": "reg_v l2_v lambda_v l2_reg_v",
    "training.l2_linear": "reg_w l2_w lambda_w l2_reg_w",
    "training.learning_rate": "lr eta eta0 step_size learn_rate alpha",
    "training.n_epochs": "epochs epoch num_epochs n_iter iterations iter max_iter num_iter passes",
    "training.n_replicas": "replicas",
    "training.optimizer": "optim opt algorithm",
    "training.outer_momentum": "momentum",
    "training.patience": "early_stopping_rounds n_iter_no_change",
    "training.rows_per_round": "batch_size batch minibatch minibatch_size mini_batch_size batchsize",
    "training.schedule": "lr_schedule learning_rate_schedule lr_scheduler scheduler_type decay lr_decay",
    "training.warm_start": "init_model pretrained initial_model checkpoint_from load_model",
    "cluster.workers": "n_workers num_workers n_jobs",
    "cluster.threads_per_worker": "threads nthreads n_threads num_threads nthread",
    "cluster.memory_limit": "memory max_memory",
    "output.directory": "output_dir out_dir model_dir save_dir save_path model_path output_path",
    "output.resume": "resume_training continue_training",
}
"""By knob: other tools' names, in small letters and with underscores."""
_SEVERAL = {
    "alpha": ("training.learning_rate", "training.l2_linear", "training.l2_factors"),
    **dict.fromkeys(
        ("l2", "lambda", "reg", "reg_lambda", "regularization", "weight_decay", "l2_reg", "lambda_l2", "penalty"),
        ("training.l2_linear", "training.l2_factors"),
    ),
}
"""Names that mean one thing here and another there."""
SYNONYMS: dict[str, tuple[str, ...]] = {
    **{name: (knob,) for knob, names in _NAMES.items() for name in names.split()},
    **_SEVERAL,
}
"""Full names of the knobs that another tool's name may mean, by that name."""


def meant_by(name: str) -> tuple[str, ...]:
    """Full names of the knobs that a name of another tool may mean, however it is spelled; none where it is unknown."""
    return SYNONYMS.get(name.lower().replace("-", "_"), ())
