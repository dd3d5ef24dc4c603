"""The ``ps.json`` of the public large-scale example."""

from __future__ import annotations

from typing import Any

PUBLISHED: dict[str, Any] = {
    "volatile_db": {
        "type": "redis_cluster",
        "address": "172.20.0.31:6373,172.20.0.32:6374,172.20.0.33:6375",
        "user_name": "default",
        "password": "",
        "num_partitions": 8,
        "allocation_rate": 268435456,
        "max_get_batch_size": 10000,
        "max_set_batch_size": 10000,
        "overflow_margin": 10000000,
        "overflow_policy": "evict_oldest",
        "overflow_resolution_target": 0.99,
        "initial_cache_rate": 1.0,
        "cache_missed_embeddings": False,
        "update_filters": ["^hps_.+$"],
    },
    "supportlonglong": True,
    "models": [
        {
            "model": "dlrm",
            "sparse_files": ["/model-data/criteo/model/dlrm/1/dlrm0_sparse_20000.model"],
            "dense_file": "/model-data/criteo/model/dlrm/1/dlrm_dense_20000.model",
            "network_file": "/model-data/criteo/model/dlrm/1/dlrm.json",
            "num_of_worker_buffer_in_pool": 2,
            "num_of_refresher_buffer_in_pool": 1,
            "deployed_device_list": [0],
            "max_batch_size": 64,
            "default_value_for_each_table": [0.0, 0.0],
            "hit_rate_threshold": 0.5,
            "gpucacheper": 0.1,
            "gpucache": True,
            "cache_refresh_percentage_per_iteration": 0.0,
            "maxnum_des_feature_per_sample": 13,
            "maxnum_catfeature_query_per_table_per_sample": [26],
            "embedding_vecsize_per_table": [128],
            "slot_num": 26,
        }
    ],
}
