#!/bin/sh
# Stands where the official image has its entrypoint.
exec litellm "$@"
