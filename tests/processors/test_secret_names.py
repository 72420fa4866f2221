"""Which names are taken for those of secrets: the list is the specification."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trackhub.processors.secret_names import names_a_secret

SECRETS = """
api_key apikey apiKey API_KEY OPENAI_API_KEY openai.api_key service/api-key api_key_2 api_keys api_keys/openai
password Password db_password password1 postgres/password passwd user_pwd passphrase
secret client_secret secret_key aws_secret_access_key AWS_SECRET_ACCESS_KEY secrets/openai secret/value
access_key access_key_id private_key private_key_pem ssh/key encryption_key license_key
token hf_token HF_TOKEN hfToken auth/token auth.token hub_token push_to_hub_token use_auth_token access_token
access_token_secret refresh_token session_token id_token bot_token neptune_api_token api_tokens input/hf_token
Authorization headers/Authorization credentials google_application_credentials jwt
"""
NO_SECRETS = """
max_tokens tokens_per_batch token_count tokenizer num_tokens max_new_tokens tokens n_tokens total_tokens
keyboard key key_size keys monitor_key sort_key primary_key public_key image_key random_key key_value_heads
num_key_value_heads eos_token bos_token pad_token unk_token cls_token sep_token mask_token pad_token_id eos_token_id
image_token_index generation/eos_token additional_special_tokens decoder_start_token decoder_start_token_id
tokenizer/pad_token stop_token token_type token_type_ids loss_per_token time_per_output_token tokens_seen token_dropout
password_length min_password_length password_file secret_name api_key_name api_key_env credentials_path token_url
secretary passwordless lr loss author authority monkey turkey donkey accuracy optimizer/lr betoken broken
"""


@pytest.mark.parametrize("name", [*SECRETS.split(), "api key"])
def test_it_looks_like_the_name_of_a_secret(name: str) -> None:
    assert names_a_secret(name)


@pytest.mark.parametrize("name", NO_SECRETS.split())
def test_it_does_not(name: str) -> None:
    assert not names_a_secret(name)


@given(st.sampled_from(["api_key", "password", "hf_token", "client_secret", "auth/token"]), st.text(max_size=8))
def test_neither_case_nor_separators_nor_a_folder_hide_it(name: str, folder: str) -> None:
    for written in (name.upper(), name.replace("_", "-"), name.replace("_", "."), name.replace("_", " ")):
        assert names_a_secret(written)
        assert names_a_secret(f"{folder}/{written}")


@given(st.text())
def test_any_text_is_a_name(name: str) -> None:
    assert names_a_secret(name) in (True, False)
