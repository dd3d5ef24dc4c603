#!/bin/sh
# Starts JupyterLab on $NOTEBOOK, such as multi-stage/01-Components.ipynb, in a container.
#
# The notebook's folder is a volume, so that what was run stays. Files that a newer image brings replace those that
# came with the former one; if somebody has run or changed such a file, theirs stays beside it under another name.
set -eu

folder=${NOTEBOOK%%/*}
new=${EXAMPLES:-/opt/examples}/$folder
mine=$HOME/$folder
came=$mine/.came-with-image

if ! diff -rq "$new" "$came" > /dev/null 2>&1; then
  (cd "$new" && find . -type f) | while read -r file; do
    cmp -s "$new/$file" "$came/$file" && continue
    if [ -e "$mine/$file" ] && ! cmp -s "$mine/$file" "$came/$file"; then
      kept="${file%.*} (yours until $(date +%F)).${file##*.}"
      mv "$mine/$file" "$mine/$kept"
      echo "$folder/${file#./} is newer in this image; yours is kept as ${kept#./}"
    fi
    mkdir -p "$(dirname "$mine/$file")"
    cp "$new/$file" "$mine/$file"
  done
  rm -rf "$came"
  cp -r "$new" "$came"
fi

# 0.0.0.0 is inside the container; the compose files publish the port on 127.0.0.1 alone.
exec jupyter lab --no-browser --ip=0.0.0.0 --port="$JUPYTER_PORT" --ServerApp.port_retries=0 \
  --ServerApp.root_dir="$HOME" --LabApp.default_url="/lab/tree/$NOTEBOOK"
