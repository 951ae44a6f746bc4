@echo off
rem The main job on the embedded demo: zero-shot, text classifier, LaFTer, MultiLayerLaFTer; a table and a picture.
rem Further arguments go to both trainings, e.g. --epochs 3. Needs no GPU and no download beyond the requirements.
rem The drawn data and the runs go into the folders data and output\demo where you stand.
setlocal
call "%~dp0setup_env.bat"
if %ERRORLEVEL% neq 0 exit /b 1
set "RUNS=%CD%\output\demo"
set TRAIN="%PROJECT%\LaFTer.py" --dataset-config-file demo --output-dir "%RUNS%" --resume auto
call "%PY%" %TRAIN% --trainer LaFTer %*
if %ERRORLEVEL% neq 0 exit /b 1
call "%PY%" %TRAIN% --trainer MultiLayerLaFTer %*
if %ERRORLEVEL% neq 0 exit /b 1
rem where Python finds the module
cd /d "%PROJECT%"
call "%PY%" -m utils.results "%RUNS%"
exit /b %ERRORLEVEL%
