"""Set the administrator's password from the environment before MLflow's server starts.

MLflow reads MLFLOW_AUTH_ADMIN_PASSWORD only while its database of users is empty. This program applies it at every
start, so that a restart sets a new password. It also creates or migrates the database's schema, because the server's
processes would all try that at once.
"""

from __future__ import annotations

import sys

from mlflow.server.auth.config import read_auth_config
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore

config = read_auth_config()
if not (config.admin_username and config.admin_password):
    sys.exit("MLflow's configuration names no administrator or no password")
store = SqlAlchemyStore()
store.init_db(config.database_uri)
if not store.has_user(config.admin_username):
    store.create_user(config.admin_username, config.admin_password, is_admin=True)
elif not store.authenticate_user(config.admin_username, config.admin_password):
    store.update_user(config.admin_username, password=config.admin_password, is_admin=True)
