#!/bin/sh
# The page: which unit answers, where, and the database's address as the brain has it now.
key=$ARGOSY_ENDPOINT/v2/keys/config/db
database=$(timeout 2 wget -q -O - "$key" | sed -n 's/.*"value":"\([^"]*\)".*/\1/p')
printf 'Content-Type: application/json\r\n\r\n'
printf '{"unit": "%s", "machine": "%s", "database": "%s"}\n' "$ARGOSY_UNIT" "$ARGOSY_MACHINE" "$database"
