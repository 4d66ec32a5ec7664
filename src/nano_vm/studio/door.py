"""The door of the studio: a browser shows the key that the command printed, once; a cookie of this machine keeps it.

Other users of the machine can reach a port on loopback, and pages of other sites can be made to look at it. Neither has
the key.
"""

from __future__ import annotations

import hmac

import streamlit as st

from nano_vm.studio import settings as settings_

_COOKIE = """
export default function(component) {
  const { data } = component;
  document.cookie = data.name + "=" + data.key + "; path=/; SameSite=Strict; max-age=43200";
  const address = new URL(window.location.href);
  if (address.searchParams.has("key")) {
    address.searchParams.delete("key");
    window.history.replaceState(null, "", address.toString());
  }
}
"""


def is_open() -> bool:
    """Whether this session may come in; shows what to do where not."""
    key = settings_.current().key
    if key is None or st.session_state.get("door") == key:
        return True
    name = cookie_name(key)
    for given in (st.query_params.get("key"), st.context.cookies.get(name)):
        if given and hmac.compare_digest(given.encode(), key.encode()):
            st.session_state["door"] = key
            keep = st.components.v2.component("nano_vm_door", html="<span></span>", js=_COOKIE)
            keep(data={"name": name, "key": key}, key="door_cookie", height=1)
            return True
    st.markdown("# nano-vm studio")
    st.info("Open the address that `nano-vm studio` printed: it holds the key to this studio.")
    with st.form("door_form"):
        given = st.text_input("or enter the key", type="password")
        if st.form_submit_button("Open") and hmac.compare_digest(given.encode(), key.encode()):
            st.session_state["door"] = key
            st.rerun()
    return False


def cookie_name(key: str) -> str:
    """Cookies do not know ports: two studios of one machine must not lock each other out."""
    import hashlib

    return "nano_vm_studio_" + hashlib.sha256(key.encode()).hexdigest()[:8]
