@echo off
rem The main job on the embedded demo: zero-shot, text classifier, LaFTer, MultiLayerLaFTer; a table and a picture.
rem Further arguments go to both trainings, e.g. --epochs 3. Needs no GPU and no download beyond the requirements.
setlocal
call "%~dp0setup_env.bat" || exit /b 1
for %%T in (LaFTer MultiLayerLaFTer) do (
    "%PY%" LaFTer.py --dataset-config-file demo --trainer %%T --output-dir output/demo --resume auto %* || exit /b 1
)
"%PY%" -m utils.results output/demo
exit /b %ERRORLEVEL%
